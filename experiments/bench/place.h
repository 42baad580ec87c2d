// Where the rows of a bench are measured: the device, the precisions, and how large the work is
// (a GPU needs more of it to be busy).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "macgrad/core/tensor.h"

namespace macgrad::experiments {

/// How a row computes. Rows of `exact` have plain names; the others end with the precision's name.
struct Precision {
  std::string name = "exact";  // exact | tf32 | bf16 | "bf16 storage"
  std::string math = "exact";  // --math: rounding of float32 inputs of products
  DType dtype = DType::float32;
};

/// A Transformer of `layers` + `layers` layers, and its batch of `rows` sentence pairs.
struct ModelSize {
  std::string name;  // empty on the CPU, where there is one
  int64_t layers = 3, width = 256, ffn = 1024, heads = 8;
  int64_t rows = 128, length = 20, vocabulary = 10000;
};

/// Sizes of the work. The members' values are the CPU's.
struct BenchSizes {
  int64_t copy = 1 << 24;                           // float32 elements
  int64_t square = 1024;                            // the GEMM limit: square³
  std::vector<std::array<int64_t, 3>> products = {  // M, N, K
      {2560, 256, 256},
      {2560, 1024, 256},
      {2560, 10000, 256}};
  std::array<int64_t, 3> weight_gradient = {2560, 1024, 256};  // rows, outputs, inputs
  std::array<int64_t, 3> linear = {2560, 256, 1024};           // rows, inputs, outputs
  std::array<int64_t, 2> softmax = {4096, 4096};
  std::array<int64_t, 2> layer_norm = {65536, 256};
  std::array<int64_t, 2> cross_entropy = {1678, 10000};
  bool backward_rows = false;  // the kernels of the backward pass and of Adam as rows of their own
  int64_t batch = 16, heads = 8, head_dim = 64, features = 128;
  std::vector<int64_t> lengths = {200, 500, 1000, 2000, 4000};
  std::vector<int64_t> causal_lengths = {};
  int64_t short_batch = 128, short_length = 20;
  // The second: an update so small that its time is what ops, tape and allocator cost.
  std::vector<ModelSize> models = {{}, {"small", 2, 32, 64, 4, 4, 8, 64}};
  std::vector<int64_t> decoded = {64, 1024};  // tokens
  int64_t translation_pairs = 1500;           // of the row with batches by length
};

/// The sizes above on the CPU; on a GPU sizes that fill one: 1 GiB copied, 512 MiB a row op,
/// lengths to 16,000, and the models and batch (8,192 tokens) of its training rows.
BenchSizes sizes_for(DeviceType type);

struct BenchPlace {
  Device device = kCpu;
  std::vector<Precision> precisions = {{}};
  std::function<void(const std::string&)> set_math = {};  // absent: exact is all there is
  // On a GPU: c = a·b by one plain call of its GEMM library, the limit of products.
  std::function<void(const Tensor& a, const Tensor& b, const Tensor& c)> library_product = {};
  BenchSizes sizes = {};
  double seconds = 1.0;  // multiplies the time that each row is measured for
  bool print = true;     // rows as they are measured
};

/// Every precision of a device; of CUDA also bfloat16 tensors, with products in bf16.
std::vector<Precision> precisions_of(DeviceType type);

/// The name of a row at a precision.
std::string row_name(const std::string& name, const Precision& precision);

/// Runs f for each precision with its rounding set, and leaves the first one's set.
void for_each_precision(const BenchPlace& place, const std::function<void(const Precision&)>& f);

/// "64 MiB", "1 GiB".
std::string size_text(double bytes);

}  // namespace macgrad::experiments
