// Which kernel slots ran, in which dtypes, against the list in core/kernels.h: for the coverage
// tests of both devices.
#pragma once

#include <map>
#include <set>
#include <string>
#include <utility>

#include "macgrad/core/feature_draw.h"
#include "macgrad/core/kernels.h"

namespace macgrad::testing {

#define MACGRAD_NAME(slot, ...) kernels::slot.name(),
inline const std::set<std::string> kAllSlots = {MACGRAD_ALL_KERNELS(MACGRAD_NAME, MACGRAD_NAME)};
inline const std::set<std::string> kSharedSlots = {
    MACGRAD_SHARED_KERNELS(MACGRAD_NAME, MACGRAD_NAME)};
#undef MACGRAD_NAME

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
