// Subwords: every line comes back as it was, what training gives, the model's file and its errors,
// and the codec that words and subwords share. With $MULTI30K_DIR every line of the corpus as well.
#include "macgrad/experiments/common/subwords.h"

#include <doctest/doctest.h>
#include <sentencepiece_processor.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "macgrad/experiments/common/text_codec.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/common/unicode.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
using Folder = testing::TemporaryFolder;
using testing::contains;
using Ids = std::vector<std::int64_t>;
using Lines = std::vector<std::string>;

// 4 special ids and 256 bytes come before the learned pieces.
constexpr std::int64_t kFirstLearned = 260;

// Captions of a made-up kind, in two languages.
Lines captions() {
  Lines lines;
  const Lines who{"a dog", "the cat", "two children", "ein hund", "die katze", "zwei kinder"};
  const Lines what{"runs through the water", "is playing with a ball", "läuft durch das wasser",
                   "spielt mit einem großen ball", "sits on the red wall"};
  for (const std::string& subject : who)
    for (const std::string& rest : what) lines.push_back(subject + " " + rest + " .");
  return lines;
}

const Subwords& learned() {
  static const Subwords subwords = Subwords::train(captions(), 400);
  return subwords;
}

std::string bytes_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string load_error(const std::string& path) {
  try {
    Subwords::load(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

// Lines that a coding may well damage.
Lines awkward_lines() {
  return {"",
          " ",
          "   ",
          "a",
          " a",
          "  a dog   runs  ",
          "\t",
          "\ta\t\tdog\t",
          "a\xC2\xA0"
          "dog\xC2\xA0",  // no-break spaces
          "\xE3\x80\x80"
          "a\xE2\x80\x83"
          "b",             // U+3000, U+2003
          "\xE2\x96\x81",  // U+2581, the library's sign for a space
          "\xE2\x96\x81 \xE2\x96\x81 a\xE2\x96\x81"
          "dog \xE2\x96\x81\xE2\x96\x81",
          "\xE2\x96\x85 a \xE2\x96\x85",  // U+2585, reserved by the library
          "\xE2\x81\x87",                 // U+2047, the library's sign for <unk>
          "<s>",
          "</s>",
          "<pad>",
          "<unk>",
          "<bos>",
          "<eos>",
          "a <s> dog </s> runs <unk> <pad> .",
          "<0x41>",
          "a <0x0A> b",
          "a\rb\r",
          "\x01\x7F\x1F",
          "\xEF\xBB\xBF"
          "a",                                   // a byte order mark
          "\xEF\xBF\xBD\xEF\xBF\xBF",            // U+FFFD, a noncharacter
          "e\xCC\x81 \xC3\xA9",                  // not normalised, and normalised
          "\xEF\xAC\x81 \xC2\xBD \xE2\x91\xA0",  // what NFKC would change
          "\xE2\x80\x8B\xE2\x80\x8F\xC2\xAD",    // zero width, right to left, soft hyphen
          "\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x94\xAC \xF4\x8F\xBF\xBF",
          "\xD8\xA7\xD9\x84 \xE4\xB8\xAD\xE6\x96\x87",
          "A DOG RUNS",
          std::string(20000, 'a'),
          std::string(5000, ' ')};
}

// The ids of a line are in range, none is special, and they give the line again.
void check_round_trip(const Subwords& subwords, const std::string& line) {
  CAPTURE(line);
  const Ids ids = subwords.encode(line);
  for (const std::int64_t id : ids) {
    REQUIRE(id >= Vocabulary::kSpecials);
    REQUIRE(id < subwords.size());
  }
  REQUIRE(subwords.decode(ids) == line);
}

TEST_CASE("subwords: every line comes back bit for bit") {
  const Subwords on_awkward = [] {
    Lines lines = awkward_lines();
    std::erase_if(lines, [](const std::string& line) { return line.size() > 1000; });
    for (int i = 0; i < 20; ++i)
      lines.push_back(
          "<s> </s> <unk> <pad> <0x41> a\xE2\x96\x81"
          "b");
    return Subwords::train(lines, 420);
  }();
  for (const std::string& line : awkward_lines()) {
    check_round_trip(learned(), line);
    check_round_trip(on_awkward, line);
  }
  // Every character of Unicode but the line feed, NUL and surrogates.
  std::string all;
  for (std::uint32_t c = 1; c < 0x110000; c += c < 0x3000 ? 1 : 97) {
    if (c == '\n' || (c >= 0xD800 && c < 0xE000)) continue;
    if (c < 0x80) {
      all += static_cast<char>(c);
    } else if (c < 0x800) {
      all += {static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0x10000) {
      all += {static_cast<char>(0xE0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
              static_cast<char>(0x80 | (c & 63))};
    } else {
      all += {static_cast<char>(0xF0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
              static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
    }
    if (c % 64 == 0) {
      check_round_trip(learned(), all);
      all.clear();
    }
  }
}

TEST_CASE("subwords: text that is no line of UTF-8 is refused") {
  CHECK_THROWS_WITH_AS(learned().encode("na\xEFve"), doctest::Contains("byte 3 (0xEF)"), Error);
  CHECK_THROWS_WITH_AS(learned().encode("a\nb"), doctest::Contains("byte 2 of a line is a line"),
                       Error);
  CHECK_THROWS_WITH_AS(learned().encode(std::string_view("a\0", 2)), doctest::Contains("NUL"),
                       Error);
  CHECK_THROWS_AS(Subwords::train({"fine", "\xC3("}, 300), Error);
}

TEST_CASE("subwords: what is learnt") {
  const Subwords& subwords = learned();
  CHECK(subwords.size() == 400);
  // Frequent words are one piece each, at the start of a line as elsewhere.
  const Ids ids = subwords.encode("ball dog ball");
  REQUIRE(ids.size() == 3);
  CHECK(ids[0] == ids[2]);
  CHECK(subwords.piece(ids[0]) == " ball");
  CHECK(subwords.encode("").empty());
  // A character that training never saw is its bytes.
  const Ids bytes = subwords.encode("\xE4\xB8\xAD");
  REQUIRE(bytes.size() >= 3);
  CHECK(Ids(bytes.end() - 3, bytes.end()) == Ids{4 + 0xE4, 4 + 0xB8, 4 + 0xAD});
  for (std::int64_t byte = 0; byte < 256; ++byte)
    CHECK(subwords.piece(4 + byte) == std::string(1, static_cast<char>(byte)));
  std::set<std::string> pieces;
  for (std::int64_t id = kFirstLearned; id < subwords.size(); ++id) {
    CHECK(find_invalid_utf8(subwords.piece(id)) == std::string::npos);
    CHECK(pieces.insert(subwords.piece(id)).second);
  }
  CHECK_THROWS_WITH_AS(subwords.piece(400), "subwords: id 400 is outside 0..399", Error);
  CHECK_THROWS_AS(subwords.piece(-1), Error);
  CHECK_THROWS_AS(subwords.decode({400}), Error);
}

TEST_CASE("subwords: training is the same every time") {
  const Folder folder;
  Subwords::train(captions(), 400).save(folder / "a.model");
  learned().save(folder / "b.model");
  CHECK(bytes_of(folder / "a.model") == bytes_of(folder / "b.model"));
}

TEST_CASE("subwords: sizes that the text does not allow") {
  // a, b, c and the space: 264 is the smallest vocabulary.
  const Lines lines{"abc abc\tab", "", "c"};
  CHECK_THROWS_WITH_AS(Subwords::train(lines, 263), doctest::Contains("need at least 264"), Error);
  const Subwords smallest = Subwords::train(lines, 264);
  CHECK(smallest.size() == 264);
  check_round_trip(smallest, "abc\tx");
  // ab, abc, " a.." and the like: soon there is nothing left to merge.
  const Subwords largest = Subwords::train(lines, 10000);
  CHECK(largest.size() > 265);
  CHECK(largest.size() < 280);
  check_round_trip(largest, "abc\tx");
  CHECK_THROWS_WITH_AS(Subwords::train({"", ""}, 300), doctest::Contains("every line is empty"),
                       Error);
  CHECK_THROWS_AS(Subwords::train({}, 300), Error);
  // Lines longer than sentencepiece would take by itself are learnt from as well.
  const std::string word(6000, 'q');
  CHECK(Subwords::train({word + " x"}, 300).encode("qqqqqqqq").size() < 8);
}

TEST_CASE("subwords: ids in an order that no text has make a valid line") {
  const Subwords& subwords = learned();
  CHECK(subwords.decode({}) == "");
  CHECK(subwords.decode({Vocabulary::kBos, 4 + 'a', Vocabulary::kPad, 4 + 'b', Vocabulary::kEos,
                         4 + 'c'}) == "ab");
  CHECK(subwords.decode({4 + 'a', Vocabulary::kUnk, 4 + 'b'}) ==
        "a\xEF\xBF\xBD"
        "b");
  CHECK(subwords.decode({4 + 0xE4, 4 + 0xB8, 4 + 'b'}) ==
        "\xEF\xBF\xBD\xEF\xBF\xBD"
        "b");
  CHECK(subwords.decode({4 + 'a', 4 + '\n', 4 + 0, 4 + 'b'}) ==
        "a\xEF\xBF\xBD\xEF\xBF\xBD"
        "b");
  // One space is what encode puts first; others are text.
  CHECK(subwords.decode({4 + ' ', 4 + ' ', 4 + 'a'}) == " a");
}

TEST_CASE("subwords: a model comes back from its file, which sentencepiece reads too") {
  const Folder folder;
  const std::string path = folder / "subwords.model";
  learned().save(path);
  CHECK(folder.entries() == 1);
  const Subwords back = Subwords::load(path);
  REQUIRE(back.size() == learned().size());
  for (std::int64_t id = 0; id < back.size(); ++id) CHECK(back.piece(id) == learned().piece(id));
  for (const std::string& line : captions()) CHECK(back.encode(line) == learned().encode(line));
  back.save(folder / "again.model");
  CHECK(bytes_of(folder / "again.model") == bytes_of(path));

  sentencepiece::SentencePieceProcessor library;
  REQUIRE(library.Load(path).ok());
  CHECK(library.GetPieceSize() == 400);
  CHECK(library.EncodeAsIds(" a dog").size() == learned().encode("a dog").size());
}

TEST_CASE("subwords: files that are no whole model are errors that name them") {
  const Folder folder;
  const std::string path = folder / "subwords.model";
  learned().save(path);
  const std::string whole = bytes_of(path);
  CHECK(contains(load_error(folder / "none.model"), "none.model: cannot read: No such file"));
  CHECK(contains(load_error(folder.path()), "is a folder"));
  for (std::size_t size = 0; size < whole.size(); size += 1 + whole.size() / 97) {
    const std::string message = load_error(folder.write("cut.model", whole.substr(0, size)));
    REQUIRE(contains(message, "cut.model: not a whole subword model"));
  }
  CHECK(contains(load_error(folder.write("cut.model", whole.substr(0, whole.size() - 1))),
                 "cut short or of another kind"));
  CHECK(contains(load_error(folder.write("text.model", "macgrad vocabulary 1\na\t1\n")),
                 "of another kind"));
  for (std::size_t at = 0; at + 8 < whole.size(); at += 1 + whole.size() / 97) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 4);
    REQUIRE(load_error(folder.write("changed.model", changed)) != "no error");
  }
  std::string changed = whole;
  changed[whole.size() / 2] = static_cast<char>(changed[whole.size() / 2] ^ 1);
  CHECK(contains(load_error(folder.write("changed.model", changed)), "checksum does not fit"));
}

TEST_CASE("text codecs: words and subwords behind one face") {
  const Folder folder;
  const TextCodec subwords(learned());
  CHECK(subwords.has_subwords());
  CHECK(subwords.size() == 400);
  CHECK(subwords.decode(subwords.encode("A dog, running.")) == "A dog, running.");
  subwords.save(folder / "s.model");
  CHECK(Subwords::load(folder / "s.model").size() == 400);

  const TextCodec words(Vocabulary::build({"a dog ,", "a dog ."}, 1));
  CHECK_FALSE(words.has_subwords());
  CHECK(words.decode(words.encode("a  dog")) == "a dog");
  CHECK(words.decode(words.encode("a dog.")) == "a <unk>");
  const TextCodec split(Vocabulary::build({"a dog ,", "a dog ."}, 1), true);
  CHECK(split.decode(split.encode("a dog.")) == "a dog .");
  split.save(folder / "w.vocab");
  CHECK(Vocabulary::load(folder / "w.vocab").size() == split.size());
}

TEST_CASE("subwords: every line of Multi30K comes back (needs $MULTI30K_DIR)") {
  const char* folder = std::getenv("MULTI30K_DIR");
  if (folder == nullptr || *folder == '\0') {
    MESSAGE("skipped: MULTI30K_DIR is not set");
    return;
  }
  const std::string task1 = find_multi30k(folder);
  for (const Multi30kForm form : {Multi30kForm::tokenized, Multi30kForm::raw}) {
    const ParallelText train = load_multi30k(task1, "train", "de", "en", form);
    Lines both = train.source;
    both.insert(both.end(), train.target.begin(), train.target.end());
    const Subwords subwords = Subwords::train(both, 10000);
    CHECK(subwords.size() == 10000);
    for (const char* split : {"train", "val", "test_2016_flickr", "test_2017_flickr",
                              "test_2017_mscoco", "test_2018_flickr"}) {
      ParallelText text = load_multi30k(task1, split, "de", "en", form);
      for (const auto* side : {&text.source, &text.target}) {
        std::size_t sum = 0, most = 0;
        for (const std::string& line : *side) {
          const Ids ids = subwords.encode(line);
          sum += ids.size();
          most = std::max(most, ids.size());
          REQUIRE(subwords.decode(ids) == line);
        }
        MESSAGE(std::string(split) << (form == Multi30kForm::raw ? " raw" : " tok")
                                   << (side == &text.source ? " de" : " en") << ": " << side->size()
                                   << " lines, tokens a line: mean "
                                   << static_cast<double>(sum) / static_cast<double>(side->size())
                                   << ", max " << most);
      }
    }
  }
}

}  // namespace
}  // namespace macgrad::experiments
