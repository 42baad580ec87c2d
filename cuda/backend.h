// The CUDA functions that fill the slots of core/kernels.h (register.cpp), a file of this folder
// for each file of core/cpu/.
#pragma once

#include "macgrad/core/kernels.h"

namespace macgrad::cuda {
#include "macgrad/core/backend_functions.inc"
}  // namespace macgrad::cuda
