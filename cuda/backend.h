// The CUDA functions that fill the slots of core/kernels.h (register.cpp), a file of this folder
// for each file of core/cpu/.
#pragma once

#include "core/kernels.h"

namespace macgrad::cuda {
#include "core/backend_functions.inc"
}  // namespace macgrad::cuda
