#include "macgrad/cuda/index_fault.h"

#include "macgrad/cuda/runtime.h"

namespace macgrad::cuda {
namespace {

IndexFault* the_fault = nullptr;

}  // namespace

IndexFault* index_fault() {
  if (!the_fault) {
    require(!capturing(), "the first index kernel of a process cannot be captured; run a warm-up");
    void* block = nullptr;
    CUDA_CHECK(cudaMallocHost(&block, sizeof(IndexFault)));
    the_fault = static_cast<IndexFault*>(block);
    *the_fault = {};
  }
  return the_fault;
}

void throw_index_fault() {
  if (!the_fault || !*const_cast<volatile int*>(&the_fault->noted)) return;
  const IndexFault f = *the_fault;
  *the_fault = {};
  throw Error("[{}] index {} at place {} is outside [0, {})", f.op, f.index, f.place, f.extent);
}

}  // namespace macgrad::cuda
