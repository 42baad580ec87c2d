// Text from files to batches: reading and its errors, the Multi30K layout, vocabulary, the toy
// corpus, batches.
#include <doctest/doctest.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/batches.h"
#include "macgrad/experiments/common/text_files.h"
#include "macgrad/experiments/common/toy_corpus.h"
#include "macgrad/experiments/common/unicode.h"
#include "macgrad/experiments/common/vocabulary.h"
#include "macgrad/tests/errors.h"
#include "macgrad/tests/temporary_folder.h"

namespace macgrad::experiments {
namespace {
namespace fs = std::filesystem;

class Folder : public testing::TemporaryFolder {
 public:
  std::string write_gz(const std::string& name, const std::string& text) const {
    const std::string file = *this / name;
    fs::create_directories(fs::path(file).parent_path());
    gzFile stream = gzopen(file.c_str(), "wb");
    gzwrite(stream, text.data(), static_cast<unsigned>(text.size()));
    gzclose(stream);
    return file;
  }
};

std::string bytes_of(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

using Lines = std::vector<std::string>;
using testing::contains;
using testing::error_of;

TEST_CASE("UTF-8 is checked strictly") {
  const auto bad_at = [](std::string_view text) { return find_invalid_utf8(text); };
  constexpr auto kFine = std::string_view::npos;
  CHECK(bad_at("") == kFine);
  CHECK(bad_at("a\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80") == kFine);
  CHECK(bad_at("\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF") == kFine);
  CHECK(bad_at("ab\xC0\x80") == 2);        // overlong NUL
  CHECK(bad_at("\xC1\xBF") == 0);          // overlong
  CHECK(bad_at("\xE0\x9F\xBF") == 0);      // overlong
  CHECK(bad_at("\xF0\x8F\xBF\xBF") == 0);  // overlong
  CHECK(bad_at("\xED\xA0\x80") == 0);      // surrogate
  CHECK(bad_at("\xF4\x90\x80\x80") == 0);  // above U+10FFFF
  CHECK(bad_at("\xF8\x88\x80\x80\x80") == 0);
  CHECK(bad_at("x\x80") == 1);      // continuation alone
  CHECK(bad_at("x\xE4\xBD") == 1);  // cut off
  CHECK(bad_at("\xC3(") == 0);
}

TEST_CASE("words are split as Python splits them") {
  const auto words = split_words(
      "  a\tb\xC2\xA0"
      "c\xE3\x80\x80"
      "d\xE2\x80\x8B"
      "e \r\n");
  CHECK(words == std::vector<std::string_view>{"a", "b", "c",
                                               "d\xE2\x80\x8B"
                                               "e"});
  CHECK(split_words(" \t ").empty());
  CHECK(trim_end("a b \xC2\xA0\n") == "a b");
  CHECK(trim_end(" \n").empty());
}

TEST_CASE("lines of plain and gzip files") {
  const Folder folder;
  const std::string text =
      "\xEF\xBB\xBF"
      "one\r\n\nthr\xC3\xA9\xC3\xA9\nlast";
  const Lines expected{"one", "", "thr\xC3\xA9\xC3\xA9", "last"};
  CHECK(read_lines(folder.write("plain.txt", text)) == expected);
  CHECK(read_lines(folder.write_gz("packed.gz", text)) == expected);
  CHECK(read_lines(folder.write("end.txt", "a\nb\n")) == Lines{"a", "b"});
  CHECK(read_lines(folder.write("empty.txt", "")).empty());
  CHECK(read_lines(folder.write_gz("empty.gz", "")).empty());
  // Members one after the other are one file, as gzip -d has it.
  const std::string joined =
      bytes_of(folder.write_gz("1.gz", "a\nb")) + bytes_of(folder.write_gz("2.gz", "c\nd\n"));
  CHECK(read_lines(folder.write("joined.gz", joined)) == Lines{"a", "bc", "d"});
  // Longer than any buffer inside.
  std::string long_text;
  for (int i = 0; i < 200000; ++i) long_text += "line " + std::to_string(i) + "\n";
  const Lines many = read_lines(folder.write_gz("long.gz", long_text));
  CHECK(many.size() == 200000);
  CHECK(many[199999] == "line 199999");
}

TEST_CASE("damaged files are errors that name file and line") {
  const Folder folder;
  const auto reading = [](const std::string& path) { return error_of([&] { read_lines(path); }); };
  CHECK(contains(reading(folder.path() + "/none.txt"), "none.txt: cannot open: No such file"));
  CHECK(contains(reading(folder.path()), "is a folder"));

  const std::string bad = folder.write("bad.txt", "fine\nna\xEFve\n");
  CHECK(contains(reading(bad), "bad.txt: line 2: byte 3 (0xEF) is not valid UTF-8"));
  // Latin-1 e acute before a line end must not swallow it.
  CHECK(contains(reading(folder.write("end.txt", "caf\xE9\nx\n")), "line 1: byte 4 (0xE9)"));
  CHECK(contains(reading(folder.write("nul.txt", std::string("a\nb\0c\n", 6))),
                 "line 2: byte 2 is NUL"));
  CHECK(contains(reading(folder.write("fake.gz", "plain text\n")), "line 1: not a gzip file"));

  std::string text;
  for (int i = 0; i < 500; ++i) text += std::to_string(i * 7919) + "\n";
  const std::string whole = bytes_of(folder.write_gz("whole.gz", text));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    const std::string message = reading(folder.write("cut.gz", whole.substr(0, size)));
    CAPTURE(size);
    REQUIRE(contains(message, "cut.gz: line "));
    if (size > 20) REQUIRE(contains(message, "truncated"));
  }
  std::string flipped = whole;
  flipped[whole.size() / 2] = static_cast<char>(flipped[whole.size() / 2] ^ 0x10);
  CHECK(contains(reading(folder.write("flip.gz", flipped)), "flip.gz: line "));
}

TEST_CASE("parallel files must have equally many lines") {
  const Folder folder;
  const std::string a = folder.write("a.de", "x\ny\nz\n");
  const std::string b = folder.write("b.en", "p\nq\n");
  const std::string message = error_of([&] { read_parallel(a, b); });
  CHECK(contains(message, "a.de has 3 lines"));
  CHECK(contains(message, "b.en has 2"));
  CHECK(contains(message, "line 3 of " + a));
  CHECK(contains(error_of([&] { read_parallel(b, a); }), "line 3 of " + a));
  CHECK(read_parallel(a, a).size() == 3);
}

TEST_CASE("the Multi30K layout") {
  const Folder folder;
  folder.write("data/task1/tok/train.lc.norm.tok.de", "ein hund .\nzwei .\n");
  folder.write("data/task1/tok/train.lc.norm.tok.en", "a dog .\ntwo .\n");
  folder.write("data/task1/tok/val.lc.norm.tok.de", "");
  folder.write("data/task1/tok/val.lc.norm.tok.en", "");
  folder.write_gz("data/task1/raw/train.de.gz", "Ein Hund.\nZwei.\n");
  folder.write_gz("data/task1/raw/train.en.gz", "A dog.\nTwo.\n");
  const char* set = std::getenv("MULTI30K_DIR");
  const std::string earlier = set != nullptr ? set : "";

  for (const char* below : {"", "/data", "/data/task1", "/"}) {
    CHECK(fs::equivalent(find_multi30k(folder.path() + below), folder.path() + "/data/task1"));
  }
  setenv("MULTI30K_DIR", folder.path().c_str(), 1);
  const std::string task1 = find_multi30k("");
  CHECK(fs::equivalent(task1, folder.path() + "/data/task1"));
  CHECK(load_multi30k(task1, "train", "de", "en").target == Lines{"a dog .", "two ."});
  CHECK(load_multi30k(task1, "train", "en", "de").target == Lines{"ein hund .", "zwei ."});
  CHECK(load_multi30k(task1, "train", "de", "en", Multi30kForm::raw).source ==
        Lines{"Ein Hund.", "Zwei."});
  CHECK(contains(error_of([&] { load_multi30k(task1, "train", "fr", "en"); }),
                 "train.lc.norm.tok.fr: no such file"));
  CHECK(contains(error_of([&] { load_multi30k(task1, "test", "de", "en"); }),
                 "there are train.de, train.en, val.de, val.en: choose another split or language"));
  CHECK(contains(error_of([&] { load_multi30k(task1, "val", "de", "en"); }), "is empty"));

  // --data wins over the environment, and a wrong one does not fall back to it.
  const std::string message = error_of([&] { find_multi30k("/nowhere/at/all"); });
  CHECK(contains(message, "--data /nowhere/at/all"));
  CHECK(contains(message, "git clone https://github.com/multi30k/dataset data/multi30k"));
  setenv("MULTI30K_DIR", "/nowhere", 1);
  CHECK(contains(error_of([&] { find_multi30k(""); }), "MULTI30K_DIR=/nowhere"));
  if (set != nullptr) {
    setenv("MULTI30K_DIR", earlier.c_str(), 1);
  } else {
    unsetenv("MULTI30K_DIR");
  }
}

TEST_CASE("a vocabulary orders by frequency, then text") {
  const Vocabulary words =
      Vocabulary::build({"b a c", "a b d <eos>", "a \xC3\xA9  \xC3\xA9 e", "<eos> <pad>"}, 2);
  Lines order;
  for (std::int64_t i = 0; i < words.size(); ++i) order.push_back(words.word(i));
  CHECK(order == Lines{"<pad>", "<bos>", "<eos>", "<unk>", "a", "b", "\xC3\xA9"});
  CHECK(words.encode("b x a") == std::vector<std::int64_t>{5, Vocabulary::kUnk, 4});
  // Text cannot end or pad a sentence.
  CHECK(words.encode("<eos> <pad> <bos>") == std::vector<std::int64_t>(3, Vocabulary::kUnk));
  CHECK(words.decode({Vocabulary::kBos, 4, 3, 0, 6, Vocabulary::kEos, 5}) == "a <unk> \xC3\xA9");
  CHECK(words.decode({}) == "");
  CHECK_THROWS_WITH_AS(words.word(7), "vocabulary: id 7 is outside 0..6", Error);
  CHECK_THROWS_AS(words.word(-1), Error);
}

TEST_CASE("a vocabulary comes back from its file") {
  const Folder folder;
  const Vocabulary words = Vocabulary::build({"b a c , .", "a b \" \\ \xC3\xA9"}, 1);
  const std::string path = folder.path() + "/words.txt";
  words.save(path);
  const Vocabulary back = Vocabulary::load(path);
  REQUIRE(back.size() == words.size());
  for (std::int64_t i = 0; i < words.size(); ++i) CHECK(back.word(i) == words.word(i));
  CHECK(back.id("c") == words.id("c"));
  back.save(folder.path() + "/again.txt");
  CHECK(bytes_of(folder.path() + "/again.txt") == bytes_of(path));
  CHECK(std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator()) == 2);

  const auto loading = [&](const std::string& text) {
    return error_of([&] { Vocabulary::load(folder.write("bad.txt", text)); });
  };
  const std::string header = "macgrad vocabulary 2\n";
  CHECK(contains(loading(""), "bad.txt: line 1: not a vocabulary"));
  CHECK(contains(loading("a\t1\n"), "line 1: not a vocabulary"));
  CHECK(contains(loading(header + "a\t2\nb\nend\n"), "line 3: expected a word"));
  CHECK(contains(loading(header + "a b\t2\nend\n"), "line 2: expected a word"));
  CHECK(contains(loading(header + "a\t2x\nend\n"), "line 2: expected a word"));
  CHECK(contains(loading(header + "a\t0\nend\n"), "line 2: expected a word"));
  CHECK(contains(loading(header + "\t2\nend\n"), "line 2: expected a word"));
  CHECK(contains(loading(header + "a\t2\na\t1\nend\n"), "line 3: the word \"a\" stands twice"));
  CHECK(contains(loading(header + "<pad>\t2\nend\n"), "line 2: the word \"<pad>\" stands twice"));

  // Cut anywhere but after its last letter, a file is refused.
  const std::string whole = bytes_of(path);
  REQUIRE(whole.ends_with("end\n"));
  for (std::size_t size = 0; size + 1 < whole.size(); ++size) {
    CAPTURE(size);
    const std::string message = loading(whole.substr(0, size));
    REQUIRE(contains(message, "bad.txt: line "));
    // In the middle of a letter it is not UTF-8 either.
    if (size > header.size())
      REQUIRE((contains(message, "cut short") || contains(message, "not valid UTF-8")));
  }
}

TEST_CASE("the toy corpus") {
  const ToyCorpus corpus = make_toy_corpus(1);
  REQUIRE(corpus.train.size() == 2000);
  REQUIRE(corpus.valid.size() == 200);
  REQUIRE(corpus.train.target.size() == 2000);
  std::set<std::string> sources(corpus.train.source.begin(), corpus.train.source.end());
  CHECK(sources.size() == 2000);
  for (const std::string& line : corpus.valid.source) CHECK_FALSE(sources.contains(line));

  // Every validation word is known from training, so that BLEU can reach 100.
  const Vocabulary source = Vocabulary::build(corpus.train.source, 5);
  const Vocabulary target = Vocabulary::build(corpus.train.target, 5);
  CHECK(source.size() < 60);
  CHECK(target.size() < 60);
  for (std::size_t i = 0; i < 200; ++i) {
    CHECK(source.decode(source.encode(corpus.valid.source[i])) == corpus.valid.source[i]);
    CHECK(target.decode(target.encode(corpus.valid.target[i])) == corpus.valid.target[i]);
    const std::size_t length = split_words(corpus.valid.target[i]).size();
    CHECK(length >= 6);
    CHECK(length <= 13);
  }
  CHECK(make_toy_corpus(1).valid.source == corpus.valid.source);
  CHECK(make_toy_corpus(2).valid.source != corpus.valid.source);
  CHECK(make_toy_corpus(1, 10, 0).train.source ==
        Lines(corpus.train.source.begin(), corpus.train.source.begin() + 10));
  CHECK_THROWS_AS(make_toy_corpus(1, 100000, 1), Error);
}

// The language of the toy corpus, said a second time: parses the source and translates it.
std::string toy_translation(const std::string& line) {
  static const std::map<std::string, std::string> words{
      {"dog", "0velu"},     {"cat", "1mirra"},     {"girl", "1sanne"},    {"boy", "0torko"},
      {"house", "2bastel"}, {"tree", "0arvo"},     {"river", "1lissa"},   {"boat", "2kemet"},
      {"man", "0dorun"},    {"woman", "1feya"},    {"ball", "2rundel"},   {"horse", "0kavalo"},
      {"small", "pik"},     {"big", "grond"},      {"red", "ruv"},        {"old", "senek"},
      {"young", "nevi"},    {"quiet", "tishi"},    {"black", "morak"},    {"happy", "gaudi"},
      {"sees", "vidar"},    {"finds", "troven"},   {"follows", "sekuit"}, {"loves", "amat"},
      {"paints", "pintur"}, {"carries", "portan"}, {"watches", "gardit"}, {"hears", "audil"},
      {"near", "pruk"},     {"behind", "derri"},   {"under", "subit"},    {"beside", "lator"},
      {"today", "hodi"},    {"often", "saepo"},    {"again", "denov"}};
  const Lines articles{"lo", "la", "le", "un", "una", "une"};
  const auto views = split_words(line);
  const Lines source(views.begin(), views.end());
  std::size_t at = 0;
  const auto noun_phrase = [&] {
    const std::size_t definite = source[at++] == "the" ? 0 : 3;
    std::string first = words.at(source[at++]);
    std::string adjective;
    if (first[0] > '9') {
      adjective = " " + first;
      first = words.at(source[at++]);
    }
    const auto gender = static_cast<std::size_t>(first[0] - '0');
    return articles[definite + gender] + " " + first.substr(1) + adjective;
  };
  const std::string subject = noun_phrase();
  const std::string verb = words.at(source[at++]);
  const std::string object = noun_phrase();
  std::string place;
  std::string adverb;
  if (source[at] == "near" || source[at] == "behind" || source[at] == "under" ||
      source[at] == "beside") {
    const std::string preposition = words.at(source[at++]);
    place = " " + noun_phrase() + " " + preposition;
  }
  if (source[at] != ".") adverb = words.at(source[at++]) + " ";
  return adverb + subject + place + " " + object + " " + verb + " .";
}

TEST_CASE("the toy translation reorders and agrees") {
  CHECK(toy_translation("an old woman loves the boat near a red tree again .") ==
        "denov una feya senek un arvo ruv pruk le kemet amat .");
  const ToyCorpus corpus = make_toy_corpus(3, 500, 0);
  for (std::size_t i = 0; i < corpus.train.size(); ++i) {
    CAPTURE(corpus.train.source[i]);
    CHECK(corpus.train.target[i] == toy_translation(corpus.train.source[i]));
    CHECK_FALSE(contains(" " + corpus.train.source[i], " a old"));
  }
}

EncodedPairs random_pairs(std::size_t count) {
  EncodedPairs pairs;
  std::uint64_t state = 1;
  const auto draw = [&] {
    return (state = state * 6364136223846793005u + 1442695040888963407u) >> 40;
  };
  for (std::size_t i = 0; i < count; ++i) {
    pairs.source.emplace_back(draw() % 30);
    pairs.target.emplace_back(pairs.source.back().size() + draw() % 5);
    for (auto& id : pairs.source.back()) id = static_cast<std::int64_t>(4 + draw() % 50);
    for (auto& id : pairs.target.back()) id = static_cast<std::int64_t>(4 + draw() % 50);
  }
  return pairs;
}

// Rebuilds every sentence from the batches and compares; returns the order of the indices.
std::vector<std::size_t> check_batches(const EncodedPairs& pairs, std::int64_t tokens,
                                       const std::vector<Batch>& batches) {
  std::vector<std::size_t> order;
  for (const Batch& batch : batches) {
    const std::int64_t rows = batch.source.rows;
    REQUIRE(rows == static_cast<std::int64_t>(batch.indices.size()));
    REQUIRE(batch.target_input.rows == rows);
    REQUIRE(batch.target_output.rows == rows);
    REQUIRE(batch.target_input.width == batch.target_output.width);
    const std::int64_t width = std::max(batch.source.width, batch.target_input.width);
    CHECK((rows == 1 || rows * width <= tokens));
    std::int64_t target_tokens = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const std::size_t i = batch.indices[static_cast<std::size_t>(r)];
      order.push_back(i);
      const auto row = [r](const PaddedIds& block) {
        REQUIRE(block.ids.size() == static_cast<std::size_t>(block.rows * block.width));
        return std::vector<std::int64_t>(block.ids.begin() + r * block.width,
                                         block.ids.begin() + (r + 1) * block.width);
      };
      const auto padded = [](std::vector<std::int64_t> ids, std::int64_t to) {
        ids.resize(static_cast<std::size_t>(to), Vocabulary::kPad);
        return ids;
      };
      auto source = pairs.source[i];
      source.push_back(Vocabulary::kEos);
      auto output = pairs.target[i];
      output.push_back(Vocabulary::kEos);
      auto input = pairs.target[i];
      input.insert(input.begin(), Vocabulary::kBos);
      target_tokens += static_cast<std::int64_t>(output.size());
      CHECK(row(batch.source) == padded(source, batch.source.width));
      CHECK(row(batch.target_input) == padded(input, batch.target_input.width));
      CHECK(row(batch.target_output) == padded(output, batch.target_output.width));
    }
    CHECK(batch.target_tokens == target_tokens);
  }
  std::vector<std::size_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  REQUIRE(sorted.size() == pairs.size());
  for (std::size_t i = 0; i < sorted.size(); ++i) REQUIRE(sorted[i] == i);
  return order;
}

TEST_CASE("batches hold every sentence exactly once") {
  const EncodedPairs pairs = random_pairs(1000);
  for (const std::int64_t tokens : {256, 8, 100000}) {
    CAPTURE(tokens);
    const auto first = check_batches(pairs, tokens, shuffled_batches(pairs, tokens, 7, 0));
    CHECK(check_batches(pairs, tokens, shuffled_batches(pairs, tokens, 7, 0)) == first);
    CHECK(check_batches(pairs, tokens, shuffled_batches(pairs, tokens, 7, 1)) != first);
    CHECK(check_batches(pairs, tokens, shuffled_batches(pairs, tokens, 8, 0)) != first);
    const auto fixed = check_batches(pairs, tokens, ordered_batches(pairs, tokens));
    CHECK(check_batches(pairs, tokens, ordered_batches(pairs, tokens)) == fixed);
  }
}

TEST_CASE("batches by length hold little padding, and the epochs differ in company") {
  const EncodedPairs pairs = random_pairs(5000);
  std::set<std::vector<std::size_t>> groups;
  for (std::uint64_t epoch = 0; epoch < 2; ++epoch) {
    std::int64_t used = 0;
    std::int64_t room = 0;
    for (const Batch& batch : shuffled_batches(pairs, 512, 1, epoch)) {
      const auto rows = static_cast<std::int64_t>(batch.indices.size());
      const auto& source = batch.source.ids;
      used += std::ssize(source) - std::count(source.begin(), source.end(), Vocabulary::kPad) +
              batch.target_tokens;
      room += rows * (batch.source.width + batch.target_output.width);
      auto members = batch.indices;
      std::sort(members.begin(), members.end());
      if (members.size() > 3) CHECK(groups.insert(members).second);
    }
    CHECK(static_cast<double>(used) > 0.85 * static_cast<double>(room));
  }
}

TEST_CASE("a batch as tensors: what must be predicted, and where") {
  const EncodedPairs pairs{{{4}, {5, 6}}, {{7, 8}, {9}}};
  const Batch batch = ordered_batches(pairs, 100).at(0);
  const BatchTensors b = to_tensors(batch, kCpu);
  CHECK(b.tokens == batch.target_tokens);
  const auto places = b.places.to_vector<std::int64_t>();
  const auto tokens = b.output.to_vector<std::int64_t>();
  REQUIRE(tokens.size() == 5);  // 7 8 <eos>, 9 <eos>
  REQUIRE(places.size() == tokens.size());
  std::vector<std::int64_t> padded(batch.target_output.ids.size(), Vocabulary::kPad);
  for (std::size_t i = 0; i < places.size(); ++i)
    padded.at(static_cast<std::size_t>(places[i])) = tokens[i];
  CHECK(padded == batch.target_output.ids);
}

TEST_CASE("batches of odd inputs") {
  CHECK(shuffled_batches({}, 100, 1, 0).empty());
  CHECK_THROWS_AS(ordered_batches({}, 0), Error);
  EncodedPairs uneven;
  uneven.source.resize(2);
  CHECK_THROWS_WITH_AS(ordered_batches(uneven, 100),
                       "batches: 2 source sentences, 0 target sentences", Error);
  const ParallelText text{{"a b", ""}, {"", "b"}};
  const TextCodec words(Vocabulary::build({"a b"}, 1));
  check_batches(encode_pairs(text, words, words), 100,
                ordered_batches(encode_pairs(text, words, words), 100));
}

}  // namespace
}  // namespace macgrad::experiments
