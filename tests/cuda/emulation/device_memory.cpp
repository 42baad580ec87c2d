// Device memory of the emulated card, and the lock that keeps the host out of it.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <vector>

#include "machine.h"

namespace emulation {
namespace {

// Device memory is one range of addresses, so that a single call locks it. Under the address
// sanitizer each block is a separate allocation, so that every overrun is seen.
constexpr size_t kArenaBytes = size_t{4} << 30;
constexpr size_t kBlockAlignment = 256;  // cudaMalloc's

struct Memory {
  std::map<const char*, size_t> blocks;              // bytes by first address
  std::map<size_t, std::vector<char*>> free_blocks;  // by rounded size
  char* base = nullptr;
  size_t high = 0;  // bytes of the arena ever used
  size_t used = 0;
  size_t limit = size_t{1} << 30;
  int unlocked = 0;
};
// Leaked on purpose: tensors with static lifetime are released late.
Memory& memory() {
  static auto* m = new Memory;
  return *m;
}

size_t page() {
  static const auto size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

void protect(int protection) {
  Memory& m = memory();
  if (m.high > 0 && mprotect(m.base, m.high, protection) != 0) fail("mprotect failed");
}

}  // namespace

void* device_allocate(size_t bytes) {
  Memory& m = memory();
  if (m.used + bytes > m.limit) return nullptr;
  const size_t rounded =
      std::max<size_t>(1, (bytes + kBlockAlignment - 1) / kBlockAlignment) * kBlockAlignment;
  char* block = nullptr;
  if (kSanitized) {
    void* p = nullptr;
    if (posix_memalign(&p, kBlockAlignment, std::max<size_t>(bytes, 1)) != 0) return nullptr;
    block = static_cast<char*>(p);
  } else if (auto& list = m.free_blocks[rounded]; !list.empty()) {
    block = list.back();
    list.pop_back();
  } else {
    if (!m.base) {
      m.base = static_cast<char*>(mmap(nullptr, kArenaBytes, PROT_NONE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (m.base == MAP_FAILED) fail("no addresses for the device's memory");
    }
    if (m.high + rounded + page() > kArenaBytes) return nullptr;
    block = m.base + m.high;
    m.high += (rounded + page() - 1) / page() * page();
    if (m.unlocked > 0) protect(PROT_READ | PROT_WRITE);
  }
  m.blocks[block] = bytes;
  m.used += bytes;
  return block;
}

bool device_release(void* block) {
  Memory& m = memory();
  const auto it = m.blocks.find(static_cast<char*>(block));
  if (it == m.blocks.end()) return false;
  m.used -= it->second;
  if (kSanitized) {
    std::free(block);
  } else {
    const size_t rounded =
        std::max<size_t>(1, (it->second + kBlockAlignment - 1) / kBlockAlignment) * kBlockAlignment;
    m.free_blocks[rounded].push_back(static_cast<char*>(block));
  }
  m.blocks.erase(it);
  return true;
}

bool is_device(const void* address) {
  const Memory& m = memory();
  auto it = m.blocks.upper_bound(static_cast<const char*>(address));
  if (it == m.blocks.begin()) return false;
  --it;
  return static_cast<const char*>(address) < it->first + std::max<size_t>(it->second, 1);
}

size_t device_bytes_in_use() {
  return memory().used;
}
size_t memory_limit() {
  return memory().limit;
}
void set_memory_limit(size_t bytes) {
  memory().limit = bytes;
}

Unlock::Unlock() {
  if (memory().unlocked++ == 0) protect(PROT_READ | PROT_WRITE);
}
Unlock::~Unlock() {
  if (--memory().unlocked == 0) protect(PROT_NONE);
}

}  // namespace emulation
