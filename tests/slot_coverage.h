// Which kernel slots ran, in which dtypes, against the list in core/kernels.h: for the coverage
// tests of both devices.
#pragma once

#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "macgrad/core/error.h"
#include "macgrad/core/feature_draw.h"
#include "macgrad/core/kernels.h"

namespace macgrad::testing {

// The names in core/kernels.h itself, so that a new slot cannot be forgotten here.
inline std::set<std::string> slots_of_header() {
  std::set<std::string> names;
#define MACGRAD_NAME(op) names.insert(kernels::op.name());
  MACGRAD_UNARY_OPS(MACGRAD_NAME)
  MACGRAD_BINARY_OPS(MACGRAD_NAME)
  MACGRAD_COMPARE_OPS(MACGRAD_NAME)
#undef MACGRAD_NAME
  std::ifstream file(std::string(MACGRAD_FIXTURES) + "/../../core/kernels.h");
  require(file.good(), "core/kernels.h cannot be read below {}", MACGRAD_FIXTURES);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::string start = "inline constinit Kernel<";
  for (size_t at = text.find(start); at != std::string::npos; at = text.find(start, at + 1)) {
    const size_t quote = text.find_first_not_of(" \n", text.find('{', at) + 1);
    if (text[quote] != '"') continue;  // of the op lists
    names.insert(text.substr(quote + 1, text.find('"', quote + 1) - quote - 1));
  }
  return names;
}

// Notes every slot with the floating dtypes of its operands.
class Noted : public KernelObserver {
 public:
  Noted() : previous_(set_kernel_observer(this)) {}
  ~Noted() override { set_kernel_observer(previous_); }
  Noted(const Noted&) = delete;
  Noted& operator=(const Noted&) = delete;

  void after(const KernelCall& call) override {
    for (const auto* list : {&call.inputs, &call.outputs})
      for (const Tensor* t : *list)
        if (t->defined() && is_floating(t->dtype()))
          seen_[call.name].insert({call.device.type, t->dtype()});
  }
  bool seen_on(DeviceType device, const std::string& slot, DType dtype) const {
    const auto found = seen_.find(slot);
    return found != seen_.end() && found->second.contains({device, dtype});
  }

 private:
  std::map<std::string, std::set<std::pair<DeviceType, DType>>> seen_;
  KernelObserver* previous_;
};

// A draw of three features of degree 1 and a tail of two.
inline void run_feature_draw(DType dtype, Device device) {
  std::vector<double> law(static_cast<size_t>(kLawTail), 0.0);
  law[1] = 3.0;
  for (int64_t n = 0; n < kLawDegrees; ++n) law[static_cast<size_t>(kLawWeights + n)] = 0.5;
  law.insert(law.end(), {1.0, 0.25});
  FeatureDrawArgs args;
  args.head_dim = 4;
  args.tail_from = 2;
  args.tail_count = 2;
  kernels::draw_features(Tensors{Tensor::from_vector(law).to(device)},
                         Tensors{Tensor::empty({4, 9}, dtype, device)},
                         Tensors{Tensor::empty({5}, dtype, device)},
                         Tensors{Tensor::empty({kRmfaLayout}, DType::float64, device)}, {args});
}

}  // namespace macgrad::testing
