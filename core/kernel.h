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
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "macgrad/core/tensor.h"

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
  /// Runs the CPU kernel on copies of the operands as they were before the call, and returns the
  /// copies of `outputs`. Absent on the CPU, without a CPU kernel for these operands, and for
  /// observers that do not ask.
  std::function<Tensors()> on_cpu = {};
};

/// A tool that watches every kernel call. One at a time.
class KernelObserver {
 public:
  virtual ~KernelObserver() = default;
  /// Whether on_cpu is wanted: it copies every operand.
  virtual bool compares() const { return false; }
  virtual void before(const KernelCall&) {}
  virtual void after(const KernelCall&) {}
};
/// Installs `observer` (nullptr: none) and returns the previous one.
KernelObserver* set_kernel_observer(KernelObserver* observer);
KernelObserver* kernel_observer();

/// While alive, no observer is called: for tools whose own work runs kernels.
class PauseObserver {
 public:
  PauseObserver() : observer_(set_kernel_observer(nullptr)) {}
  ~PauseObserver() { set_kernel_observer(observer_); }
  PauseObserver(const PauseObserver&) = delete;
  PauseObserver& operator=(const PauseObserver&) = delete;

 private:
  KernelObserver* observer_;
};

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

// An operand's copy on the CPU, given back in its role.
template <class T>
struct CpuCopy {
  T value;
  explicit CpuCopy(const T& a) : value(a) {}
  const T& role() const { return value; }
  void append_output(Tensors&) const {}
};
template <class Role, bool output>
struct CpuTensor {
  Tensor t;
  explicit CpuTensor(const Role& a) : t(a.t.defined() ? a.t.to(kCpu).contiguous() : Tensor()) {}
  Role role() const { return Role(t); }
  void append_output(Tensors& list) const {
    if (output) list.push_back(t);
  }
};
template <class Role, bool output>
struct CpuList {
  Tensors tensors;
  explicit CpuList(const Role& a) {
    for (const Tensor& t : a.list) tensors.push_back(t.to(kCpu).contiguous());
  }
  Role role() const { return Role(tensors); }
  void append_output(Tensors& list) const {
    if (output) list.insert(list.end(), tensors.begin(), tensors.end());
  }
};
template <>
struct CpuCopy<In> : CpuTensor<In, false> {
  using CpuTensor::CpuTensor;
};
template <>
struct CpuCopy<Out> : CpuTensor<Out, true> {
  using CpuTensor::CpuTensor;
};
template <>
struct CpuCopy<InOut> : CpuTensor<InOut, true> {
  using CpuTensor::CpuTensor;
};
template <>
struct CpuCopy<InList> : CpuList<InList, false> {
  using CpuList::CpuList;
};
template <>
struct CpuCopy<InOutList> : CpuList<InOutList, true> {
  using CpuList::CpuList;
};

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
      if (observer->compares() && info.device.type != DeviceType::cpu)
        call.on_cpu = cpu_twin(args...);
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

  // The call on CPU copies, made now; see KernelCall::on_cpu.
  std::function<Tensors()> cpu_twin(Args... args) const {
    const PauseObserver pause;
    const Entry& e = entry(DeviceType::cpu);
    using Copies = std::tuple<detail::CpuCopy<std::remove_cvref_t<Args>>...>;
    const auto copies =
        std::make_shared<const Copies>(detail::CpuCopy<std::remove_cvref_t<Args>>(args)...);
    const bool served = std::apply(
        [&](const auto&... c) { return e.run && (!e.supports || e.supports(c.role()...).ok); },
        *copies);
    if (!served) return {};
    return [copies, e] {
      return std::apply(
          [&](const auto&... c) {
            const size_t scratch = e.scratch_bytes ? e.scratch_bytes(c.role()...) : 0;
            e.run(detail::with_scratch(c.role(), scratch, kCpu)...);
            Tensors outputs;
            (c.append_output(outputs), ...);
            return outputs;
          },
          *copies);
    };
  }

  const char* name_;
  std::array<Entry, kDeviceTypes> entries_;
};

}  // namespace macgrad
