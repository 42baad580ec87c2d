// Named tensors on disk in the safetensors format (github.com/huggingface/safetensors): 8 bytes
// little-endian header length, a JSON header of dtypes, shapes and byte ranges, then the raw data.
// Files are readable by the Python package and the reverse. A file is not trusted: everything in
// the header is checked against the file's size before any tensor is allocated.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "macgrad/core/tensor.h"

namespace macgrad {

/// What a file's header says of one tensor.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::float32;
  Shape shape;
  uint64_t begin = 0;  // byte range in the file's data section
  uint64_t end = 0;
};

/// A file's header, checked. Entries are in the order of their data.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;  // of the data section, bytes from the start of the file
};

struct Safetensors {
  std::map<std::string, Tensor> tensors;  // contiguous, on the CPU
  std::map<std::string, std::string> metadata;
};

/// Writes the tensors (any strides and device; F32, F64, BF16, I64, BOOL) and string metadata.
/// The file is replaced as a whole (core/atomic_file.h): on an error (unwritable folder, full disk,
/// a FIFO at `path`) the earlier file stands, and a symbolic link is followed. The layout is the
/// Python package's: wider dtypes first, then by name, header padded with spaces to 8 bytes.
void save_safetensors(const std::string& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

/// Reads a file. Throws an Error naming the file and what is wrong with it: shorter than it says,
/// broken JSON, dtypes other than the above, more than kMaxRank dimensions, shapes that disagree
/// with byte ranges, ranges that overlap, leave holes or pass the end.
Safetensors load_safetensors(const std::string& path);

/// The header alone; checks as load_safetensors does, and allocates no tensor.
SafetensorsHeader list_safetensors(const std::string& path);

}  // namespace macgrad
