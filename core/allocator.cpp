// Blocks by size classes (eighths of powers of two), kept for the next tensor of the class; blocks
// that belong to a recorded step; counters, NaN poison and guard words for tests.
#include "macgrad/core/allocator.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace macgrad {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kLargeBlock = 2 * kHugePage;
#ifndef MACGRAD_EXACT_ALLOC
#define MACGRAD_EXACT_ALLOC 0
#endif
// Blocks of exactly the size asked for, so that a sanitizer sees every overrun by itself.
constexpr bool kExact = MACGRAD_EXACT_ALLOC != 0;
constexpr size_t kGuardBytes = kExact ? 0 : 64;
constexpr unsigned char kGuardByte = 0xA5;
// A quiet NaN as bfloat16, float32 and float64, and a wild value as int64.
constexpr uint32_t kPoisonWord = 0x7ffd7ffdu;

std::atomic<int> poison_depth{0};
std::atomic<uint64_t> violations{0};

// Large blocks ask for huge pages, which Linux gives by default only to those who ask.
void* allocate_host(size_t bytes, Device) {
  const size_t alignment = !kExact && bytes >= kLargeBlock ? kHugePage : kAlignment;
  void* block = nullptr;
  if (posix_memalign(&block, alignment, bytes) != 0) return nullptr;
#if defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) (void)::madvise(block, bytes, MADV_HUGEPAGE);
#endif
  return block;
}
void release_host(void* block, size_t, Device) {
  std::free(block);
}
void fill_host(void* block, int byte, size_t bytes, Device) {
  std::memset(block, byte, bytes);
}
void copy_host(void* to, Device, const void* from, Device, size_t bytes) {
  std::memcpy(to, from, bytes);
}

// Powers of two in eighths: at most 12.5 % is lost to rounding, and few classes exist.
size_t size_class(size_t bytes) {
  if (kExact) return bytes;
  if (bytes <= 512) return (bytes + 63) / 64 * 64;
  const size_t step = std::bit_floor(bytes) / 8;
  return (bytes + step - 1) / step * step;
}

std::string what_is_left(Device device, const RawMemory& raw) {
  if (!raw.left) return "";
  size_t free = 0, total = 0;
  raw.left(free, total, device);
  return fmt::format(", {} of {} free on the device", free, total);
}

// Giving a block back must not need memory: taking one makes the room for it.
class Pool {
 public:
  void* take(size_t bytes, Device device, const RawMemory& raw) {
    const size_t want = size_class(std::max<size_t>(bytes, 1) + kGuardBytes);
    std::lock_guard lock(mutex_);
    SizeClass& c = classes_[want];
    void* block = nullptr;
    if (private_on_ && !c.private_free.empty()) {
      block = take_last(c.private_free, want);
    } else {
      if (c.free.empty()) add_fresh(c, want, bytes, device, raw);
      if (private_on_) own(c.free.back(), want);
      block = take_last(c.free, want);
    }
    stats_.current_bytes += want;
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
    ++stats_.allocations;
    return block;
  }

  void give(void* block, size_t bytes, Device) noexcept {
    const size_t want = size_class(std::max<size_t>(bytes, 1) + kGuardBytes);
    std::lock_guard lock(mutex_);
    stats_.current_bytes -= want;
    stats_.cached_bytes += want;
    SizeClass& c = classes_.find(want)->second;
    (private_blocks_.contains(block) ? c.private_free : c.free).push_back(block);
  }

  void use_private(bool on) {
    std::lock_guard lock(mutex_);
    private_on_ = on;
  }

  void trim(Device device, const RawMemory& raw) {
    std::lock_guard lock(mutex_);
    trim_locked(device, raw);
  }
  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak_bytes = stats_.current_bytes;
  }
  // With exact allocation only the counters are used.
  void count(int64_t bytes) {
    std::lock_guard lock(mutex_);
    stats_.current_bytes = static_cast<size_t>(static_cast<int64_t>(stats_.current_bytes) + bytes);
    stats_.peak_bytes = std::max(stats_.peak_bytes, stats_.current_bytes);
    if (bytes > 0) ++stats_.allocations;
  }

 private:
  // Both lists have room for all the blocks of their size, so adding to one allocates nothing.
  struct SizeClass {
    std::vector<void*> free;
    std::vector<void*> private_free;  // of private_blocks_; kept when the cache is trimmed
    size_t blocks = 0;                // in the lists or in use
    void make_room() {
      for (std::vector<void*>* list : {&free, &private_free})
        if (list->capacity() <= blocks) list->reserve(2 * blocks + 1);
    }
  };

  void* take_last(std::vector<void*>& list, size_t want) {
    void* block = list.back();
    list.pop_back();
    stats_.cached_bytes -= want;
    return block;
  }

  void add_fresh(SizeClass& c, size_t want, size_t bytes, Device device, const RawMemory& raw) {
    c.make_room();
    void* block = raw.allocate(want, device);
    // Not during a capture: releasing memory waits for the stream.
    if (block == nullptr && !private_on_) {
      trim_locked(device, raw);
      block = raw.allocate(want, device);
    }
    if (block == nullptr) {
      throw Error(
          "out of memory on {}: {} bytes asked, {} in use, {} cached{}{}; use a smaller "
          "batch or shorter sequences",
          text(device), bytes, stats_.current_bytes, stats_.cached_bytes, what_is_left(device, raw),
          error_context());
    }
    c.free.push_back(block);
    ++c.blocks;
    stats_.cached_bytes += want;
  }

  void own(void* block, size_t bytes) {
    private_blocks_.insert(block);
    stats_.private_bytes += bytes;
  }

  void trim_locked(Device device, const RawMemory& raw) {
    for (auto& [size, c] : classes_) {
      while (!c.free.empty()) {
        void* block = take_last(c.free, size);
        --c.blocks;
        raw.release(block, size, device);
      }
    }
  }

  std::mutex mutex_;
  std::unordered_map<size_t, SizeClass> classes_;
  std::unordered_set<void*> private_blocks_;
  bool private_on_ = false;
  MemoryStats stats_;
};

struct Backends {
  std::array<RawMemory, kDeviceTypes> raw{
      RawMemory{allocate_host, release_host, copy_host, nullptr, fill_host}};
  std::array<Pool, kDeviceTypes> pool;
  std::unordered_set<void*> guarded;  // device blocks handed out poisoned; tests only, one thread
};

// Leaked on purpose: tensors with static lifetime may be released after other statics.
Backends& backends() {
  static auto* b = new Backends;
  return *b;
}

RawMemory& raw_of(Device device) {
  RawMemory& raw = backends().raw[static_cast<size_t>(device.type)];
  require(raw.allocate != nullptr,
          "no {} backend in this program: build with -DMACGRAD_CUDA=ON on a machine with the CUDA "
          "toolkit, or use --device cpu",
          name(device.type));
  return raw;
}

Pool& pool_of(Device device) {
  return backends().pool[static_cast<size_t>(device.type)];
}

}  // namespace

void set_raw_memory(DeviceType type, RawMemory functions) {
  backends().raw[static_cast<size_t>(type)] = functions;
}

void* allocate(size_t bytes, Device device) {
  const RawMemory& raw = raw_of(device);
  if (kExact && device.type == DeviceType::cpu) {
    // Exactly `bytes`, so that the address sanitizer sees every overrun.
    void* block = nullptr;
    if (posix_memalign(&block, kAlignment, std::max<size_t>(bytes, 1)) != 0)
      throw Error("out of memory on cpu: {} bytes asked", bytes);
    pool_of(device).count(static_cast<int64_t>(bytes));
    if (poison_depth > 0) std::memset(block, 0xff, bytes);
    return block;
  }
  void* block = pool_of(device).take(bytes, device, raw);
  if (device.type == DeviceType::cpu && poison_depth > 0) {
    auto* words = static_cast<uint32_t*>(block);
    std::fill_n(words, bytes / 4, kPoisonWord);
    std::memset(static_cast<char*>(block) + bytes / 4 * 4, 0xff, bytes % 4);
  }
  if (device.type == DeviceType::cpu) {
    std::memset(static_cast<char*>(block) + bytes, kGuardByte, kGuardBytes);
  } else if (poison_depth > 0) {
    raw.fill(block, 0xff, bytes, device);
    raw.fill(static_cast<char*>(block) + bytes, kGuardByte, kGuardBytes, device);
    backends().guarded.insert(block);
  }
  return block;
}

void release(void* block, size_t bytes, Device device) noexcept {
  if (kExact && device.type == DeviceType::cpu) {
    std::free(block);
    pool_of(device).count(-static_cast<int64_t>(bytes));
    return;
  }
  const auto* guard = static_cast<unsigned char*>(block) + bytes;
  const auto broken = [](const unsigned char* g) {
    return !std::all_of(g, g + kGuardBytes, [](unsigned char c) { return c == kGuardByte; });
  };
  if (device.type == DeviceType::cpu) {
    violations += broken(guard);
  } else if (backends().guarded.erase(block)) {
    std::array<unsigned char, kGuardBytes> copied{};
    raw_of(device).copy(copied.data(), kCpu, guard, device, kGuardBytes);
    violations += broken(copied.data());
  }
  pool_of(device).give(block, bytes, device);
}

void copy_bytes(void* to, Device to_device, const void* from, Device from_device, size_t bytes) {
  const Device other = to_device.type == DeviceType::cpu ? from_device : to_device;
  raw_of(other).copy(to, to_device, from, from_device, bytes);
}

void wait_for(Device device) {
  const RawMemory& raw = raw_of(device);
  if (raw.wait) raw.wait(device);
}

MemoryStats memory_stats(Device device) {
  return pool_of(device).stats();
}
void reset_peak(Device device) {
  pool_of(device).reset_peak();
}
void trim_cache(Device device) {
  pool_of(device).trim(device, raw_of(device));
}

void use_private_memory(Device device, bool on) {
  pool_of(device).use_private(on);
}

PoisonScope::PoisonScope() {
  ++poison_depth;
}
PoisonScope::~PoisonScope() {
  --poison_depth;
}
uint64_t guard_violations() {
  return violations;
}

}  // namespace macgrad
