// The public headers of core: tensors, dtypes, random numbers, safetensors files.
#pragma once

#include "macgrad/core/dtype.h"
#include "macgrad/core/error.h"
#include "macgrad/core/generator.h"
#include "macgrad/core/safetensors.h"
#include "macgrad/core/shape.h"
#include "macgrad/core/tensor.h"
#include "macgrad/core/version.h"
