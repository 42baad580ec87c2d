// Sizes of the rows on a GPU, and the loop over precisions.
#include "macgrad/experiments/bench/place.h"

#include <fmt/format.h>

namespace macgrad::experiments {

BenchSizes sizes_for(DeviceType type) {
  BenchSizes s;
  if (type == DeviceType::cpu) return s;
  s.copy = int64_t{1} << 28;
  s.square = 4096;
  // Products of the two models' layers and output at 8,192 tokens.
  s.products = {
      {8192, 128, 128}, {8192, 256, 128}, {8192, 512, 512}, {8192, 2048, 512}, {8192, 10000, 512}};
  s.weight_gradient = {8192, 2048, 512};
  s.linear = {8192, 512, 2048};
  s.softmax = {32768, 4096};
  s.layer_norm = {262144, 512};
  s.cross_entropy = {13422, 10000};
  s.backward_rows = true;
  s.lengths = {200, 500, 1000, 2000, 4000, 8000, 16000};
  s.causal_lengths = {1000, 4000};
  s.models = {{"tiny", 4, 128, 256, 4, 128, 64, 10000}, {"base", 6, 512, 2048, 8, 128, 64, 10000}};
  return s;
}

std::vector<Precision> precisions_of(DeviceType type) {
  if (type == DeviceType::cpu) return {{}};
  return {{},
          {"tf32", "tf32", DType::float32},
          {"bf16", "bf16", DType::float32},
          {"bf16 storage", "bf16", DType::bfloat16}};
}

std::string row_name(const std::string& name, const Precision& precision) {
  return precision.name == "exact" ? name : name + " " + precision.name;
}

void for_each_precision(const BenchPlace& place, const std::function<void(const Precision&)>& f) {
  for (const Precision& p : place.precisions) {
    if (place.set_math) place.set_math(p.math);
    f(p);
  }
  if (place.set_math) place.set_math(place.precisions.front().math);
}

std::string size_text(double bytes) {
  const double mib = bytes / (1 << 20);
  return mib < 1024 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.0f} GiB", mib / 1024);
}

}  // namespace macgrad::experiments
