// The public headers of autograd, and those of core.
#pragma once

#include "macgrad/autograd/attention.h"
#include "macgrad/autograd/derivatives.h"
#include "macgrad/autograd/engine.h"
#include "macgrad/autograd/fused.h"
#include "macgrad/autograd/gradcheck.h"
#include "macgrad/autograd/graph_record.h"
#include "macgrad/autograd/linear_attention.h"
#include "macgrad/autograd/node.h"
#include "macgrad/autograd/ops.h"
#include "macgrad/autograd/projected_attention.h"
#include "macgrad/autograd/scope.h"
#include "macgrad/autograd/variable.h"
#include "macgrad/core/core.h"
