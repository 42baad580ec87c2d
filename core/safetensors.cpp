// The format: 8 bytes of header length, a JSON header of names, dtypes, shapes and offsets, then
// the data. Everything in a header is checked before memory is asked for, and files are replaced
// whole.
#include "macgrad/core/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "macgrad/core/atomic_file.h"

namespace macgrad {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

using Json = nlohmann::json;
constexpr uint64_t kMaxHeader = 100'000'000;  // the Python package's limit
constexpr const char* kMetadata = "__metadata__";

struct DTypeName {
  DType dtype;
  const char* name;
};
// In the order of the file: the Python package puts the widest types first.
constexpr std::array<DTypeName, 5> kDTypeNames{{{DType::int64, "I64"},
                                                {DType::float64, "F64"},
                                                {DType::float32, "F32"},
                                                {DType::bfloat16, "BF16"},
                                                {DType::boolean, "BOOL"}}};

size_t file_rank(DType dtype) {
  size_t rank = 0;
  while (kDTypeNames[rank].dtype != dtype) ++rank;
  return rank;
}

class File {
 public:
  explicit File(const std::string& path)
      : fd_(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {}
  ~File() {
    if (fd_ >= 0) ::close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }
  bool is_open() const { return fd_ >= 0; }

 private:
  int fd_;
};

template <class... Args>
[[noreturn]] void fail(const std::string& path, fmt::format_string<Args...> format,
                       Args&&... args) {
  throw Error("[safetensors] {}: {}", path, fmt::format(format, std::forward<Args>(args)...));
}

void read_at(const File& file, const std::string& path, void* to, uint64_t bytes, uint64_t from) {
  auto* out = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t n =
        ::pread(file.fd(), out, std::min<uint64_t>(bytes, 1 << 30), static_cast<off_t>(from));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail(path, "cannot read: {}", std::strerror(errno));
    if (n == 0) fail(path, "ends after {} bytes; it became shorter while it was read", from);
    out += n;
    from += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
}

// Parses the header, refusing repeated names and deep nesting, which the parser itself lets pass.
Json parse_header(const std::string& path, const std::string& text) {
  std::vector<std::set<std::string>> keys;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) {
      if (depth > 3) fail(path, "the header is nested too deeply");
      keys.emplace_back();
    } else if (event == Json::parse_event_t::object_end ||
               event == Json::parse_event_t::array_end) {
      keys.pop_back();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) fail(path, "the header names \"{}\" twice", key);
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::exception& error) {
    fail(path, "the header is not JSON: {}", error.what());
  }
}

SafetensorsEntry parse_entry(const std::string& path, const std::string& name, const Json& json,
                             uint64_t data_bytes) {
  if (!json.is_object() || json.size() != 3 || !json.contains("dtype") || !json.contains("shape") ||
      !json.contains("data_offsets")) {
    fail(path, "tensor \"{}\" does not consist of dtype, shape and data_offsets", name);
  }
  SafetensorsEntry entry;
  entry.name = name;
  const Json& dtype = json["dtype"];
  const auto known = std::find_if(kDTypeNames.begin(), kDTypeNames.end(), [&](const DTypeName& d) {
    return dtype.is_string() && dtype.get_ref<const std::string&>() == d.name;
  });
  if (known == kDTypeNames.end()) {
    fail(path, "tensor \"{}\" has dtype {}; readable are F32, F64, BF16, I64 and BOOL", name,
         dtype.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
  entry.dtype = known->dtype;

  const Json& shape = json["shape"];
  if (!shape.is_array()) fail(path, "the shape of tensor \"{}\" is not a list", name);
  if (shape.size() > kMaxRank) {
    fail(path, "tensor \"{}\" has {} dimensions; at most {} are supported", name, shape.size(),
         kMaxRank);
  }
  // Zeros are left out of the product: an empty tensor's strides must not overflow either.
  int64_t bytes = static_cast<int64_t>(item_size(entry.dtype));
  bool overflow = false;
  bool empty = false;
  for (const Json& extent : shape) {
    if (!extent.is_number_unsigned() ||
        extent.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
      fail(path, "the shape of tensor \"{}\" is not made of sizes: {}", name, shape.dump());
    }
    const auto size = extent.get<int64_t>();
    empty = empty || size == 0;
    overflow = overflow || __builtin_mul_overflow(bytes, std::max<int64_t>(size, 1), &bytes);
    entry.shape.push_back(size);
  }
  if (overflow) {
    fail(path, "tensor \"{}\" of shape {} has more bytes than 63 bits count", name, shape.dump());
  }
  if (empty) bytes = 0;

  const Json& offsets = json["data_offsets"];
  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    fail(path, "data_offsets of tensor \"{}\" are not two byte counts", name);
  }
  entry.begin = offsets[0].get<uint64_t>();
  entry.end = offsets[1].get<uint64_t>();
  if (entry.begin > entry.end || entry.end > data_bytes) {
    fail(path, "bytes {} to {} of tensor \"{}\" are not inside the {} bytes of data", entry.begin,
         entry.end, name, data_bytes);
  }
  if (entry.end - entry.begin != static_cast<uint64_t>(bytes)) {
    fail(path, "tensor \"{}\" of shape {} needs {} bytes, its data_offsets span {}", name,
         shape.dump(), bytes, entry.end - entry.begin);
  }
  return entry;
}

SafetensorsHeader read_header(const File& file, const std::string& path) {
  struct stat info;
  if (!file.is_open() || ::fstat(file.fd(), &info) != 0) {
    fail(path, "cannot open: {}", std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) fail(path, "is not a regular file");
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size < 8) fail(path, "has {} bytes; the header's length alone takes 8", size);
  uint64_t length = 0;
  read_at(file, path, &length, 8, 0);
  if (length > size - 8) {
    fail(path, "says its header has {} bytes, but the file has {}", length, size);
  }
  if (length > kMaxHeader) {
    fail(path, "has a header of {} bytes; at most {} are allowed", length, kMaxHeader);
  }
  std::string text(length, '\0');
  read_at(file, path, text.data(), length, 8);
  if (text.empty() || text[0] != '{') fail(path, "the header does not start with an object");
  const Json json = parse_header(path, text);

  SafetensorsHeader header;
  header.data_start = 8 + length;
  const uint64_t data_bytes = size - header.data_start;
  for (const auto& [name, value] : json.items()) {
    if (name != kMetadata) {
      header.entries.push_back(parse_entry(path, name, value, data_bytes));
      continue;
    }
    if (!value.is_object()) fail(path, "{} is not an object", kMetadata);
    for (const auto& [key, word] : value.items()) {
      if (!word.is_string()) fail(path, "{} \"{}\" is not a string", kMetadata, key);
      header.metadata[key] = word.get<std::string>();
    }
  }
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  uint64_t covered = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin < covered) {
      fail(path, "tensor \"{}\" overlaps the one before it at byte {}", entry.name, entry.begin);
    }
    if (entry.begin > covered) {
      fail(path, "bytes {} to {} of the data belong to no tensor", covered, entry.begin);
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    fail(path, "bytes {} to {} of the data belong to no tensor", covered, data_bytes);
  }
  return header;
}

// The header with its length in front, padded.
std::string header_text(const std::vector<SafetensorsEntry>& entries,
                        const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (!metadata.empty()) json[kMetadata] = metadata;
  for (const SafetensorsEntry& entry : entries) {
    const std::vector<int64_t> shape(entry.shape.begin(), entry.shape.end());
    json[entry.name] = {{"dtype", kDTypeNames[file_rank(entry.dtype)].name},
                        {"shape", shape},
                        {"data_offsets", {entry.begin, entry.end}}};
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &length, 8);
  return bytes + text;
}

}  // namespace

void save_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined()) fail(path, "tensor \"{}\" is undefined", name);
    if (name == kMetadata) fail(path, "a tensor cannot be called {}", kMetadata);
    entries.push_back({name, tensor.dtype(), tensor.shape(), 0, tensor.bytes()});
  }
  std::stable_sort(entries.begin(), entries.end(),
                   [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
                     return file_rank(a.dtype) < file_rank(b.dtype);
                   });
  uint64_t offset = 0;
  for (SafetensorsEntry& entry : entries) {
    entry.begin = offset;
    offset = entry.end += offset;
  }
  std::string header;
  try {
    header = header_text(entries, metadata);
  } catch (const Json::exception& error) {
    fail(path, "a name or a metadata string is not UTF-8: {}", error.what());
  }
  if (header.size() - 8 > kMaxHeader) {
    fail(path, "the header would have {} bytes; at most {} are allowed", header.size() - 8,
         kMaxHeader);
  }

  AtomicFile file(path);
  file.write(header.data(), header.size());
  for (const SafetensorsEntry& entry : entries) {
    const Tensor data = tensors.at(entry.name).to(kCpu).contiguous();
    file.write(data.raw(), entry.end - entry.begin);
  }
  file.commit();
}

SafetensorsHeader list_safetensors(const std::string& path) {
  const File file(path);
  return read_header(file, path);
}

Safetensors load_safetensors(const std::string& path) {
  const File file(path);
  SafetensorsHeader header = read_header(file, path);
  Safetensors result;
  for (const SafetensorsEntry& entry : header.entries) {
    const Tensor t = Tensor::empty(entry.shape, entry.dtype);
    if (entry.end > entry.begin) {
      read_at(file, path, t.raw(), entry.end - entry.begin, header.data_start + entry.begin);
    }
    // Any byte but 0 and 1 would be no bool to C++.
    if (entry.dtype == DType::boolean) {
      auto* bytes = static_cast<unsigned char*>(t.raw());
      for (uint64_t i = 0; i < entry.end - entry.begin; ++i) bytes[i] = bytes[i] != 0;
    }
    result.tensors.emplace(entry.name, t);
  }
  result.metadata = std::move(header.metadata);
  return result;
}

}  // namespace macgrad
