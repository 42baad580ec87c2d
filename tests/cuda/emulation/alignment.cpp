// Misaligned loads and stores. The kernels are compiled with -fsanitize=alignment, so that every
// access through a type that wants more alignment than its address has ends here, as it ends a
// kernel on a GPU. These are the compiler's own functions: without them libubsan would print the
// fault and go on, or end the program.
#include <cstdint>
#include <string>

#include "machine.h"

namespace emulation {

void require_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    fault("an address that is no multiple of " + std::to_string(bytes) + " bytes");
}

}  // namespace emulation

// Laid out by the compiler.
struct SourcePosition {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, info;
  char name[1];
};
struct Access {
  SourcePosition from;
  const TypeDescriptor* type;
  unsigned char log_alignment, kind;  // 0: a load, 1: a store
};

extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const Access* access,
                                                                   const void*) {
  const char* what = access->kind == 0   ? "a load of "
                     : access->kind == 1 ? "a store of "
                                         : "use of ";
  emulation::fault(std::string(access->from.file) + ":" + std::to_string(access->from.line) + ": " +
                   what + access->type->name + " at an address that is no multiple of " +
                   std::to_string(1u << access->log_alignment) + " bytes");
}
