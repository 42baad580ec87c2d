// What sentencepiece would not give back is kept from it: U+2581, its sign for a space, is coded as
// bytes here, and the space before the first word, which makes that word the same piece as
// elsewhere, is put and taken away here.
#include "macgrad/experiments/common/subwords.h"

#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "macgrad/core/error.h"
#include "macgrad/experiments/common/output_files.h"
#include "macgrad/experiments/common/unicode.h"
#include "macgrad/experiments/common/vocabulary.h"

namespace macgrad::experiments {

struct Subwords::Model {
  std::string serialized;  // as sentencepiece writes it
  sentencepiece::SentencePieceProcessor processor;
  std::vector<std::string> pieces;  // as Subwords::piece gives them
};

namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";        // U+2581 stands for a space in pieces
constexpr std::string_view kReserved = "\xE2\x96\x85";     // U+2585: training skips lines with it
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr std::int64_t kFirstByte = Vocabulary::kSpecials;
constexpr std::int64_t kBytes = 256;

// The end of a file: field 2000 of the message, a number that sentencepiece leaves to extensions.
constexpr std::string_view kFooter = "\x82\x7D\x1Bmacgrad subwords 1 ";
constexpr std::size_t kFooterSize = kFooter.size() + 8;  // eight hexadecimal digits follow

std::string footer_of(std::string_view model) {
  const uLong crc = crc32_z(0, reinterpret_cast<const Bytef*>(model.data()), model.size());
  return fmt::format("{}{:08x}", kFooter, crc);
}

std::string read_bytes(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw Error("{}: is a folder, not a subword model", path);
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || file.bad()) throw Error("{}: cannot read: {}", path, std::strerror(errno));
  return bytes;
}

// The parts of a line that training may see: between tabs, U+2581 and U+2585.
std::vector<std::string> trainable_parts(const std::string& line) {
  std::vector<std::string> parts{" "};
  for (std::size_t at = 0; at < line.size();) {
    const std::size_t length = code_point_at(line, at).length;
    const std::string_view character(line.data() + at, length);
    if (character == "\t" || character == kSpace || character == kReserved) {
      parts.emplace_back();
    } else {
      parts.back() += character;
    }
    at += length;
  }
  std::erase(parts, "");
  return parts;
}

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(const std::vector<std::string>& lines) : lines_(lines) {}
  bool done() const override { return at_ == lines_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return lines_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::vector<std::string>& lines_;
  std::size_t at_ = 0;
};

std::string with_spaces(std::string_view piece) {
  std::string text;
  while (true) {
    const std::size_t at = piece.find(kSpace);
    text += piece.substr(0, at);
    if (at == std::string_view::npos) return text;
    text += ' ';
    piece.remove_prefix(at + kSpace.size());
  }
}

void check_line(std::string_view line) {
  if (const std::size_t bad = find_invalid_utf8(line); bad != std::string_view::npos)
    throw Error("subwords: byte {} (0x{:02X}) of a line is not valid UTF-8; convert it to UTF-8",
                bad + 1, static_cast<unsigned char>(line[bad]));
  const std::size_t bad = line.find_first_of(std::string_view("\n\0", 2));
  if (bad != std::string_view::npos)
    throw Error("subwords: byte {} of a line is {}; pass lines of text without their ends", bad + 1,
                line[bad] == '\n' ? "a line feed" : "NUL");
}

// `text` with U+FFFD in place of each byte that a line of UTF-8 cannot hold.
std::string as_line(std::string_view text) {
  std::string line;
  while (!text.empty()) {
    const std::size_t bad =
        std::min(find_invalid_utf8(text), text.find_first_of(std::string_view("\n\0", 2)));
    line += text.substr(0, bad);
    if (bad == std::string_view::npos) break;
    line += kReplacement;
    text.remove_prefix(bad + 1);
  }
  return line;
}

}  // namespace

Subwords Subwords::train(const std::vector<std::string>& lines, std::int64_t size) {
  std::vector<std::string> parts;
  std::set<std::uint32_t> characters{' '};
  std::size_t longest = 1;
  for (const std::string& line : lines) {
    check_line(line);
    if (line.empty()) continue;
    for (std::string& part : trainable_parts(line)) {
      for (std::size_t at = 0; at < part.size();) {
        const CodePoint point = code_point_at(part, at);
        characters.insert(point.value);
        at += point.length;
      }
      longest = std::max(longest, part.size());
      parts.push_back(std::move(part));
    }
  }
  if (parts.empty()) throw Error("subwords: there is no text to learn from: every line is empty");
  const auto smallest = kFirstByte + kBytes + static_cast<std::int64_t>(characters.size());
  if (size < smallest)
    throw Error(
        "subwords: a vocabulary of {} is too small: {} special ids, {} bytes and the {} characters "
        "of the training text need at least {}",
        size, kFirstByte, kBytes, characters.size(), smallest);

  Sentences sentences(parts);
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {{"model_type", "bpe"},
       {"vocab_size", fmt::format("{}", size)},
       {"hard_vocab_limit", "false"},
       {"character_coverage", "1.0"},
       {"byte_fallback", "true"},
       {"normalization_rule_name", "identity"},
       {"add_dummy_prefix", "false"},
       {"remove_extra_whitespaces", "false"},
       {"pad_id", fmt::format("{}", Vocabulary::kPad)},
       {"bos_id", fmt::format("{}", Vocabulary::kBos)},
       {"eos_id", fmt::format("{}", Vocabulary::kEos)},
       {"unk_id", fmt::format("{}", Vocabulary::kUnk)},
       {"max_sentence_length", fmt::format("{}", std::max<std::size_t>(longest, 4192))},
       {"num_threads", "1"},
       {"minloglevel", "2"}},
      &sentences, &model);
  if (!status.ok()) throw Error("subwords: sentencepiece cannot learn: {}", status.ToString());
  return Subwords(std::move(model));
}

Subwords::Subwords(std::string serialized) {
  auto model = std::make_shared<Model>();
  model->serialized = std::move(serialized);
  auto& processor = model->processor;
  if (const auto status = processor.LoadFromSerializedProto(model->serialized); !status.ok())
    throw Error("sentencepiece cannot read the model: {}", status.ToString());
  const auto count = processor.GetPieceSize();
  bool ours = count >= kFirstByte + kBytes && processor.pad_id() == Vocabulary::kPad &&
              processor.bos_id() == Vocabulary::kBos && processor.eos_id() == Vocabulary::kEos &&
              processor.unk_id() == Vocabulary::kUnk;
  for (int id = 0; id < count && ours; ++id) {
    const std::int64_t byte = id - kFirstByte;
    const bool is_byte = byte >= 0 && byte < kBytes;
    std::string piece = processor.IdToPiece(id);
    ours =
        processor.IsByte(id) == is_byte && (!is_byte || piece == fmt::format("<0x{:02X}>", byte));
    if (byte < 0) piece.clear();
    if (is_byte) piece.assign(1, static_cast<char>(byte));
    model->pieces.push_back(with_spaces(piece));
  }
  if (!ours) throw Error("the model is not byte-pair encoding with bytes at ids 4..259");
  model_ = std::move(model);
}

std::int64_t Subwords::size() const {
  return static_cast<std::int64_t>(model_->pieces.size());
}

void Subwords::save(const std::string& path) const {
  write_file_atomically(path, std::string_view(model_->serialized + footer_of(model_->serialized)));
}

Subwords Subwords::load(const std::string& path) {
  std::string bytes = read_bytes(path);
  const std::string_view all(bytes);
  const std::size_t end = bytes.size() < kFooterSize ? 0 : bytes.size() - kFooterSize;
  if (!all.substr(end).starts_with(kFooter))
    throw Error(
        "{}: not a whole subword model of macgrad ({} bytes without its checksum at the end): it "
        "is "
        "cut short or of another kind; train again, or copy the whole file",
        path, bytes.size());
  if (all.substr(end) != footer_of(all.substr(0, end)))
    throw Error("{}: the subword model is damaged: its checksum does not fit; copy it again", path);
  bytes.resize(end);
  try {
    return Subwords(std::move(bytes));
  } catch (const Error& error) {
    throw Error("{}: {}", path, error.what());
  }
}

const std::string& Subwords::piece(std::int64_t id) const {
  if (id < 0 || id >= size()) throw Error("subwords: id {} is outside 0..{}", id, size() - 1);
  return model_->pieces[static_cast<std::size_t>(id)];
}

std::vector<std::int64_t> Subwords::encode(std::string_view line) const {
  check_line(line);
  std::vector<std::int64_t> ids;
  if (line.empty()) return ids;
  const std::string text = fmt::format(" {}", line);
  std::vector<int> part;
  for (std::size_t start = 0;;) {
    const std::size_t end = text.find(kSpace, start);
    const auto status = model_->processor.Encode(
        std::string_view(text).substr(start, end == std::string::npos ? end : end - start), &part);
    if (!status.ok()) throw Error("subwords: cannot encode \"{}\": {}", line, status.ToString());
    ids.insert(ids.end(), part.begin(), part.end());
    if (end == std::string::npos) return ids;
    for (const char c : kSpace) ids.push_back(kFirstByte + static_cast<unsigned char>(c));
    start = end + kSpace.size();
  }
}

std::string Subwords::decode(const std::vector<std::int64_t>& ids) const {
  std::string text;
  for (const std::int64_t id : ids) {
    if (id == Vocabulary::kEos) break;
    if (id == Vocabulary::kUnk) text += kReplacement;
    text += piece(id);
  }
  return as_line(std::string_view(text).substr(text.starts_with(' ') ? 1 : 0));
}

}  // namespace macgrad::experiments
