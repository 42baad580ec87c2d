// What all slots share: the observer, the error context, requests for scratch memory.
#include "macgrad/core/kernel.h"

namespace macgrad {
namespace {
std::atomic<KernelObserver*> current_observer{nullptr};
std::atomic<std::string (*)()> context{nullptr};
}  // namespace

void set_error_context(std::string (*where)()) {
  context = where;
}
std::string error_context() {
  const auto where = context.load();
  return where ? where() : "";
}

KernelObserver* set_kernel_observer(KernelObserver* observer) {
  return current_observer.exchange(observer);
}
KernelObserver* kernel_observer() {
  return current_observer.load(std::memory_order_relaxed);
}

namespace detail {

void CallInfo::meet(const Tensor& t) {
  if (!t.defined()) return;
  if (!have_device) {
    device = t.device();
    have_device = true;
    return;
  }
  require(t.device() == device, "[{}] operands lie on {} and {}; move them to one device", name,
          text(device), text(t.device()));
}

void bump(const Tensor& t) {
  if (t.defined()) t.storage()->bump_version();
}

Scratch make_scratch(size_t bytes, Device device) {
  if (bytes == 0) return {};
  return {Tensor::empty({static_cast<int64_t>((bytes + 7) / 8)}, DType::int64, device)};
}

void missing_kernel(const char* name, Device device, const std::array<bool, kDeviceTypes>& have) {
  std::string registered;
  for (int i = 0; i < kDeviceTypes; ++i) {
    if (!have[static_cast<size_t>(i)]) continue;
    if (!registered.empty()) registered += ", ";
    registered += macgrad::name(static_cast<DeviceType>(i));
  }
  throw Error("{}: no {} kernel; registered for: {}", name, macgrad::name(device.type), registered);
}

}  // namespace detail
}  // namespace macgrad
