// Kernel<Signature>: a typed slot for one compute kernel, with one function a device. The slot is a
// choke point: it picks the device, checks that operands share it, reports missing kernels by name,
// sizes scratch memory, raises versions, and calls the observer (timing, compare-with-CPU).
//
// Kernels only compute: operands arrive checked, broadcast and allocated. Elementwise and copy
// kernels take strides; all others need rows (the last dimension) contiguous, or say what they
// need.
#pragma once

#include <array>
#include <atomic>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "core/tensor.h"

namespace macgrad {

// Roles of tensor operands. An undefined tensor in an In or Out means "absent" where a kernel
// documents it.
struct In {
  In(const Tensor& tensor) : t(tensor) {}
  const Tensor& t;
  const Tensor* operator->() const { return &t; }
  operator const Tensor&() const { return t; }
};
struct Out {
  Out(const Tensor& tensor) : t(tensor) {}
  const Tensor& t;
  const Tensor* operator->() const { return &t; }
  operator const Tensor&() const { return t; }
};
struct InOut {
  InOut(const Tensor& tensor) : t(tensor) {}
  const Tensor& t;
  const Tensor* operator->() const { return &t; }
  operator const Tensor&() const { return t; }
};
struct InList {
  InList(std::span<const Tensor> tensors) : list(tensors) {}
  InList(const Tensors& tensors) : list(tensors) {}
  std::span<const Tensor> list;
};
struct InOutList {
  InOutList(std::span<const Tensor> tensors) : list(tensors) {}
  InOutList(const Tensors& tensors) : list(tensors) {}
  std::span<const Tensor> list;
};
/// Bytes the slot allocates for the duration of the call; callers pass Scratch{}.
struct Scratch {
  Tensor buffer;  // int64, at least scratch_bytes
  void* data() const { return buffer.defined() ? buffer.raw() : nullptr; }
};

/// Whether a kernel serves these operands; the reason is shown when it does not.
struct Support {
  bool ok = true;
  std::string reason;
  explicit operator bool() const { return ok; }
};

/// One call of a slot, as a tool sees it.
struct KernelCall {
  const char* name;
  Device device;
  std::vector<const Tensor*> inputs;   // In and InOut operands, before the call
  std::vector<const Tensor*> outputs;  // Out and InOut operands
};

/// A tool that watches every kernel call. One at a time.
class KernelObserver {
 public:
  virtual ~KernelObserver() = default;
  virtual void before(const KernelCall&) {}
  virtual void after(const KernelCall&) {}
};
/// Installs `observer` (nullptr: none) and returns the previous one.
KernelObserver* set_kernel_observer(KernelObserver* observer);
KernelObserver* kernel_observer();

namespace detail {

struct CallInfo {
  const char* name;
  Device device;
  bool have_device = false;
  void meet(const Tensor& t);
};

inline void visit(CallInfo& c, const In& a) {
  c.meet(a.t);
}
inline void visit(CallInfo& c, const Out& a) {
  c.meet(a.t);
}
inline void visit(CallInfo& c, const InOut& a) {
  c.meet(a.t);
}
inline void visit(CallInfo& c, const InList& a) {
  for (const Tensor& t : a.list) c.meet(t);
}
inline void visit(CallInfo& c, const InOutList& a) {
  for (const Tensor& t : a.list) c.meet(t);
}
template <class T>
void visit(CallInfo&, const T&) {}

inline void list(KernelCall& c, const In& a) {
  c.inputs.push_back(&a.t);
}
inline void list(KernelCall& c, const Out& a) {
  c.outputs.push_back(&a.t);
}
inline void list(KernelCall& c, const InOut& a) {
  c.inputs.push_back(&a.t);
  c.outputs.push_back(&a.t);
}
inline void list(KernelCall& c, const InList& a) {
  for (const Tensor& t : a.list) c.inputs.push_back(&t);
}
inline void list(KernelCall& c, const InOutList& a) {
  for (const Tensor& t : a.list) {
    c.inputs.push_back(&t);
    c.outputs.push_back(&t);
  }
}
template <class T>
void list(KernelCall&, const T&) {}

void bump(const Tensor& t);
inline void written(const Out& a) {
  bump(a.t);
}
inline void written(const InOut& a) {
  bump(a.t);
}
inline void written(const InOutList& a) {
  for (const Tensor& t : a.list) bump(t);
}
template <class T>
void written(const T&) {}

Scratch make_scratch(size_t bytes, Device device);
template <class T>
T with_scratch(const T& a, size_t, Device) {
  return a;
}
inline Scratch with_scratch(const Scratch&, size_t bytes, Device device) {
  return make_scratch(bytes, device);
}

[[noreturn]] void missing_kernel(const char* name, Device device,
                                 const std::array<bool, kDeviceTypes>& have);

}  // namespace detail

template <class Signature>
class Kernel;

template <class... Args>
class Kernel<void(Args...)> {
 public:
  struct Entry {
    void (*run)(Args...) = nullptr;
    Support (*supports)(Args...) = nullptr;      // absent: supports everything
    size_t (*scratch_bytes)(Args...) = nullptr;  // absent: no scratch
  };

  constexpr Kernel(const char* name, Entry cpu) : name_(name), entries_{cpu, Entry{}} {}

  const char* name() const { return name_; }
  bool has(DeviceType type) const { return entry(type).run != nullptr; }
  /// Fills the column of a backend; called once at start by register_cuda_kernels().
  void set(DeviceType type, Entry e) { entries_[static_cast<size_t>(type)] = e; }

  /// Whether a kernel of `device` exists and takes these operands.
  Support supports(Device device, Args... args) const {
    const Entry& e = entry(device.type);
    if (!e.run) return {false, std::string("no ") + macgrad::name(device.type) + " kernel"};
    return e.supports ? e.supports(args...) : Support{};
  }

  void operator()(Args... args) const {
    detail::CallInfo info{name_, kCpu};
    (detail::visit(info, args), ...);
    const Entry& e = entry(info.device.type);
    if (!e.run) {
      detail::missing_kernel(name_, info.device,
                             {entries_[0].run != nullptr, entries_[1].run != nullptr});
    }
    const size_t scratch = e.scratch_bytes ? e.scratch_bytes(args...) : 0;
    if (KernelObserver* observer = kernel_observer()) [[unlikely]] {
      KernelCall call{name_, info.device, {}, {}};
      (detail::list(call, args), ...);
      observer->before(call);
      e.run(detail::with_scratch(args, scratch, info.device)...);
      (detail::written(args), ...);
      observer->after(call);
      return;
    }
    e.run(detail::with_scratch(args, scratch, info.device)...);
    (detail::written(args), ...);
  }

 private:
  const Entry& entry(DeviceType type) const { return entries_[static_cast<size_t>(type)]; }

  const char* name_;
  std::array<Entry, kDeviceTypes> entries_;
};

}  // namespace macgrad
