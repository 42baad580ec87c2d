// Kernel<Signature>: a typed slot for one compute kernel, with one function per device. The slot is
// a choke point: it picks the device, checks that operands share it, reports missing kernels by
// name, sizes scratch memory, raises versions, and calls the observer (timing, compare-with-CPU).
// Slots are made from lists (core/kernels.h).
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

#include "macgrad/core/operands.h"

namespace macgrad {

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

template <class T>
inline constexpr bool kReads = std::is_same_v<T, In> || std::is_same_v<T, InOut> ||
                               std::is_same_v<T, InList> || std::is_same_v<T, InOutList>;
template <class T>
inline constexpr bool kWrites =
    std::is_same_v<T, Out> || std::is_same_v<T, InOut> || std::is_same_v<T, InOutList>;

/// The tensors of an operand; nothing for other arguments.
inline std::span<const Tensor> tensors_of(const auto& operand) {
  if constexpr (requires { operand.list; }) {
    return operand.list;
  } else if constexpr (requires { operand.t; }) {
    return {&operand.t, 1};
  } else {
    return {};
  }
}
/// Calls f(tensor, is read, is written) for every tensor of the operands.
template <class F, class... Args>
void for_each_tensor(F&& f, const Args&... args) {
  const auto visit = [&]<class T>(const T& operand) {
    for (const Tensor& t : tensors_of(operand)) f(t, kReads<T>, kWrites<T>);
  };
  (for_each_operand(args, visit), ...);
}

struct CallInfo {
  const char* name;
  Device device;
  bool have_device = false;
  void meet(const Tensor& t);
};

void bump(const Tensor& t);
Scratch make_scratch(size_t bytes, Device device);

// An operand's copy on the CPU, given back in its role.
template <class T>
struct CpuCopy {
  T value;
  explicit CpuCopy(const T& a) : value(a) {}
  const T& role() const { return value; }
};
template <class Role>
struct CpuTensor {
  Tensor t;
  explicit CpuTensor(const Role& a) : t(a.t.defined() ? a.t.to(kCpu).contiguous() : Tensor()) {}
  Role role() const { return Role(t); }
};
template <class Role>
struct CpuList {
  Tensors tensors;
  explicit CpuList(const Role& a) {
    for (const Tensor& t : a.list) tensors.push_back(t.to(kCpu).contiguous());
  }
  Role role() const { return Role(tensors); }
};
template <>
struct CpuCopy<In> : CpuTensor<In> {
  using CpuTensor::CpuTensor;
};
template <>
struct CpuCopy<Out> : CpuTensor<Out> {
  using CpuTensor::CpuTensor;
};
template <>
struct CpuCopy<InOut> : CpuTensor<InOut> {
  using CpuTensor::CpuTensor;
};
template <>
struct CpuCopy<InList> : CpuList<InList> {
  using CpuList::CpuList;
};
template <>
struct CpuCopy<InOutList> : CpuList<InOutList> {
  using CpuList::CpuList;
};
template <class>
struct CpuMembers;
template <class... Members>
struct CpuMembers<std::tuple<const Members&...>> : std::tuple<CpuCopy<Members>...> {
  explicit CpuMembers(const std::tuple<const Members&...>& m)
      : std::tuple<CpuCopy<Members>...>(std::make_from_tuple<std::tuple<CpuCopy<Members>...>>(m)) {}
};
template <OperandStruct S>
struct CpuCopy<S> {
  CpuMembers<decltype(members(std::declval<const S&>()))> copies;
  explicit CpuCopy(const S& a) : copies(members(a)) {}
  S role() const {
    return std::apply([](const auto&... c) { return S{c.role()...}; },
                      static_cast<const typename decltype(copies)::tuple&>(copies));
  }
};

[[noreturn]] void missing_kernel(const char* name, Device device,
                                 const std::array<bool, kDeviceTypes>& have);

struct NoInputs {};
/// What the support and the scratch memory of a kernel depend on: the member `in` of its operands.
template <class... Args>
struct InputsOf {
  using type = NoInputs;
  static NoInputs of(const Args&...) { return {}; }
};
template <class Call>
requires requires(const Call& call) {
  call.in;
}
struct InputsOf<const Call&> {
  using type = std::remove_cvref_t<decltype(Call::in)>;
  static const type& of(const Call& call) { return call.in; }
};

}  // namespace detail

template <class Signature>
class Kernel;

template <class... Args>
class Kernel<void(Args...)> {
 public:
  using Inputs = typename detail::InputsOf<Args...>::type;
  struct Entry {
    void (*run)(Args...) = nullptr;
    Support (*supports)(const Inputs&) = nullptr;      // absent: supports everything
    size_t (*scratch_bytes)(const Inputs&) = nullptr;  // absent: no scratch
  };

  constexpr Kernel(const char* name, Entry cpu) : name_(name), entries_{cpu, Entry{}} {}

  const char* name() const { return name_; }
  bool has(DeviceType type) const { return entry(type).run != nullptr; }
  /// Fills the column of a backend; called once at start by register_cuda_kernels().
  void set(DeviceType type, Entry e) { entries_[static_cast<size_t>(type)] = e; }

  /// Whether a kernel of `device` exists and takes these operands.
  Support supports(Device device, const Inputs& in) const {
    const Entry& e = entry(device.type);
    if (!e.run) return {false, std::string("no ") + macgrad::name(device.type) + " kernel"};
    return e.supports ? e.supports(in) : Support{};
  }

  void operator()(Args... args) const {
    detail::CallInfo info{name_, kCpu};
    detail::for_each_tensor([&](const Tensor& t, bool, bool) { info.meet(t); }, args...);
    const Entry& e = entry(info.device.type);
    if (!e.run) {
      detail::missing_kernel(name_, info.device,
                             {entries_[0].run != nullptr, entries_[1].run != nullptr});
    }
    KernelObserver* observer = kernel_observer();
    if (observer) [[unlikely]] {
      KernelCall call{name_, info.device, {}, {}};
      detail::for_each_tensor(
          [&](const Tensor& t, bool read, bool written) {
            if (read) call.inputs.push_back(&t);
            if (written) call.outputs.push_back(&t);
          },
          args...);
      if (observer->compares() && info.device.type != DeviceType::cpu)
        call.on_cpu = cpu_twin(args...);
      observer->before(call);
      run(e, info.device, args...);
      observer->after(call);
      return;
    }
    run(e, info.device, args...);
  }

 private:
  const Entry& entry(DeviceType type) const { return entries_[static_cast<size_t>(type)]; }

  static void run(const Entry& e, Device device, Args... args) {
    if constexpr (requires(std::tuple_element_t<0, std::tuple<Args...>> call) { call.scratch; }) {
      const auto with_scratch = [&](auto call) {
        if (e.scratch_bytes) call.scratch = detail::make_scratch(e.scratch_bytes(call.in), device);
        e.run(call);
      };
      with_scratch(args...);
    } else {
      e.run(args...);
    }
    detail::for_each_tensor(
        [](const Tensor& t, bool, bool written) {
          if (written) detail::bump(t);
        },
        args...);
  }

  // The call on CPU copies, made now; see KernelCall::on_cpu.
  std::function<Tensors()> cpu_twin(Args... args) const {
    const PauseObserver pause;
    const Entry& e = entry(DeviceType::cpu);
    using Copies = std::tuple<detail::CpuCopy<std::remove_cvref_t<Args>>...>;
    const auto copies =
        std::make_shared<const Copies>(detail::CpuCopy<std::remove_cvref_t<Args>>(args)...);
    const bool supported = std::apply(
        [&](const auto&... c) {
          return e.run &&
                 (!e.supports || e.supports(detail::InputsOf<Args...>::of(c.role()...)).ok);
        },
        *copies);
    if (!supported) return {};
    return [copies, e] {
      return std::apply(
          [&](const auto&... c) {
            Tensors outputs;
            const auto call = [&](const auto&... roles) {
              run(e, kCpu, roles...);
              detail::for_each_tensor(
                  [&](const Tensor& t, bool, bool written) {
                    if (written) outputs.push_back(t);
                  },
                  roles...);
            };
            call(c.role()...);
            return outputs;
          },
          *copies);
    };
  }

  const char* name_;
  std::array<Entry, kDeviceTypes> entries_;
};

}  // namespace macgrad

// A family's list, LIST(KERNEL) with KERNEL(name, operands) or LIST(KERNEL, SCRATCH) with
// SCRATCH(name, operand struct), becomes the functions of both backends and the slots. The operand
// struct of SCRATCH has a member `in`, on which `name_supports` and `name_scratch` depend, and a
// member `scratch`.
#define MACGRAD_DECLARE_KERNEL(name, ...) void name(__VA_ARGS__);
#define MACGRAD_DECLARE_SCRATCH(name, Call)           \
  void name(const Call& x);                           \
  Support name##_supports(const decltype(Call::in)&); \
  size_t name##_scratch(const decltype(Call::in)&);
#define MACGRAD_DEFINE_SLOT(name, ...) \
  inline constinit Kernel<void(__VA_ARGS__)> name{#name, {cpu::name, nullptr, nullptr}};
#define MACGRAD_DEFINE_SCRATCH_SLOT(name, Call)      \
  inline constinit Kernel<void(const Call& x)> name{ \
      #name, {cpu::name, cpu::name##_supports, cpu::name##_scratch}};
#define MACGRAD_SCRATCH_KERNELS(LIST)                    \
  namespace macgrad::cpu {                               \
  LIST(MACGRAD_DECLARE_KERNEL, MACGRAD_DECLARE_SCRATCH)  \
  }                                                      \
  namespace macgrad::cuda {                              \
  LIST(MACGRAD_DECLARE_KERNEL, MACGRAD_DECLARE_SCRATCH)  \
  }                                                      \
  namespace macgrad::kernels {                           \
  LIST(MACGRAD_DEFINE_SLOT, MACGRAD_DEFINE_SCRATCH_SLOT) \
  }
#define MACGRAD_KERNELS(LIST)  \
  namespace macgrad::cpu {     \
  LIST(MACGRAD_DECLARE_KERNEL) \
  }                            \
  namespace macgrad::cuda {    \
  LIST(MACGRAD_DECLARE_KERNEL) \
  }                            \
  namespace macgrad::kernels { \
  LIST(MACGRAD_DEFINE_SLOT)    \
  }
