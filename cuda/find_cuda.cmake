# MACGRAD_CUDA=AUTO|ON|OFF. AUTO builds the CUDA backend when this machine has an NVIDIA GPU, for that
# GPU alone; ON builds it in any case. Before CMake's CUDA language is enabled (an error there is
# fatal), nvcc must build a small C++20 program with cuBLAS; if it rejects the default host compiler,
# older ones are tried. Sets MACGRAD_WITH_CUDA (ON/OFF) and MACGRAD_CUDA_STATUS (version and
# architectures, or the reason why not). Where it cannot be built, AUTO falls back to OFF and ON fails.
set(MACGRAD_WITH_CUDA OFF)
set(MACGRAD_CUDA_STATUS "off (MACGRAD_CUDA=OFF)")

function(macgrad_probe_cuda)
  find_program(MACGRAD_NVCC nvcc HINTS ${CMAKE_CUDA_COMPILER} $ENV{CUDACXX} ENV CUDA_PATH
               PATHS /usr/local/cuda PATH_SUFFIXES bin)
  mark_as_advanced(MACGRAD_NVCC)
  if(CMAKE_CUDA_COMPILER)
    set(nvcc ${CMAKE_CUDA_COMPILER})
  elseif(DEFINED ENV{CUDACXX})
    set(nvcc $ENV{CUDACXX})
  else()
    set(nvcc ${MACGRAD_NVCC})
  endif()
  if(NOT nvcc)
    set(MACGRAD_CUDA_REASON "no nvcc found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${nvcc} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(NOT text MATCHES "release ([0-9]+\\.[0-9]+)")
    set(MACGRAD_CUDA_REASON "${nvcc} --version names no release" PARENT_SCOPE)
    return()
  endif()
  set(version ${CMAKE_MATCH_1})
  if(version VERSION_LESS 12.0)
    set(MACGRAD_CUDA_REASON "${nvcc} is CUDA ${version}, 12.0 or later is needed" PARENT_SCOPE)
    return()
  endif()

  set(folder ${PROJECT_BINARY_DIR}/cuda_probe)
  file(WRITE ${folder}/probe.cu [[
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include <concepts>
#include <cstdio>
#include <functional>
#include <span>
#include <string>
#include <vector>

template <std::floating_point T>
__global__ void scale(T* x, T factor, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= factor;
}

int main() {
  std::vector<float> values(4);
  std::span<float> view(values);
  std::function<void(float*)> launch = [](float* x) { scale<float><<<1, 32>>>(x, 2.0f, 4); };
  cublasHandle_t handle;
  if (cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS) launch(view.data());
  std::printf("%s\n", cudaGetErrorString(cudaGetLastError()));
}
]])
  if(CMAKE_CUDA_HOST_COMPILER)
    set(hosts ${CMAKE_CUDA_HOST_COMPILER})
  elseif(DEFINED ENV{CUDAHOSTCXX})
    set(hosts $ENV{CUDAHOSTCXX})
  else()
    set(hosts ${CMAKE_CXX_COMPILER})
    foreach(major 15 14 13 12)
      find_program(macgrad_gxx_${major} g++-${major})
      mark_as_advanced(macgrad_gxx_${major})
      if(macgrad_gxx_${major} AND CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL ${major})
        list(APPEND hosts ${macgrad_gxx_${major}})
      endif()
    endforeach()
    list(REMOVE_DUPLICATES hosts)
  endif()
  set(arch "")
  if(CMAKE_CUDA_ARCHITECTURES)
    list(GET CMAKE_CUDA_ARCHITECTURES 0 first)
    string(REGEX MATCH "^[0-9]+" arch "${first}")
  endif()
  if(NOT arch)
    set(arch 80)
  endif()
  set(reason "")
  foreach(host IN LISTS hosts)
    execute_process(
      COMMAND ${nvcc} -std=c++20 -arch=sm_${arch} -ccbin ${host} -o ${folder}/probe
              ${folder}/probe.cu -lcublas
      RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
    if(status EQUAL 0)
      set(MACGRAD_CUDA_NVCC ${nvcc} PARENT_SCOPE)
      set(MACGRAD_CUDA_HOST ${host} PARENT_SCOPE)
      set(MACGRAD_CUDA_VERSION ${version} PARENT_SCOPE)
      set(MACGRAD_CUDA_REASON "" PARENT_SCOPE)
      return()
    endif()
    string(REGEX MATCH "[^\n]*(error|fatal)[^\n]*" line "${output}")
    string(STRIP "${line}" line)
    string(APPEND reason "${nvcc} with ${host}: ${line}. ")
  endforeach()
  string(REGEX REPLACE "[\";\\]" " " reason "${reason}")
  string(STRIP "${reason}" reason)
  set(MACGRAD_CUDA_REASON "${reason}" PARENT_SCOPE)
endfunction()

if(NOT MACGRAD_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "MACGRAD_CUDA=${MACGRAD_CUDA}: use AUTO, ON or OFF")
endif()

# Compute capabilities of this machine's GPUs, for instance "90"; empty without a GPU and driver.
set(macgrad_gpus "")
if(NOT MACGRAD_CUDA STREQUAL "OFF")
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE macgrad_query ERROR_QUIET RESULT_VARIABLE macgrad_query_status)
  if(macgrad_query_status EQUAL 0)
    string(REGEX MATCHALL "[0-9]+\\.[0-9]" macgrad_gpus "${macgrad_query}")
    string(REPLACE "." "" macgrad_gpus "${macgrad_gpus}")
    list(REMOVE_DUPLICATES macgrad_gpus)
    list(FILTER macgrad_gpus EXCLUDE REGEX "^[1-7].$")  # the kernels need compute capability 8.0
  endif()
endif()

if(MACGRAD_CUDA STREQUAL "AUTO" AND NOT macgrad_gpus)
  # No semicolon: the text becomes a compile definition.
  set(MACGRAD_CUDA_STATUS "off (no NVIDIA GPU of compute capability 8.0 or later here, -DMACGRAD_CUDA=ON builds it all the same)")
  message(STATUS "CUDA is left out: no NVIDIA GPU of compute capability 8.0 or later here. To build it without one, configure with "
                 "-DMACGRAD_CUDA=ON (experiments/run and tests/run: MACGRAD_CMAKE_ARGS=-DMACGRAD_CUDA=ON)")
elseif(NOT MACGRAD_CUDA STREQUAL "OFF")
  # The answer is kept, with what was asked; a failed probe is asked again on each configure.
  set(macgrad_cuda_key "${CMAKE_CUDA_COMPILER}|$ENV{CUDACXX}|${CMAKE_CUDA_HOST_COMPILER}|$ENV{CUDAHOSTCXX}")
  if(NOT MACGRAD_CUDA_KEY STREQUAL macgrad_cuda_key OR NOT EXISTS "${MACGRAD_CUDA_NVCC}")
    message(STATUS "Checking CUDA")
    macgrad_probe_cuda()
    if(MACGRAD_CUDA_REASON STREQUAL "")
      foreach(name NVCC HOST VERSION)
        set(MACGRAD_CUDA_${name} ${MACGRAD_CUDA_${name}} CACHE INTERNAL "")
      endforeach()
      set(CMAKE_CUDA_COMPILER ${MACGRAD_CUDA_NVCC} CACHE FILEPATH "CUDA compiler")
      set(CMAKE_CUDA_HOST_COMPILER ${MACGRAD_CUDA_HOST} CACHE FILEPATH "host compiler of nvcc")
      set(MACGRAD_CUDA_KEY
        "${CMAKE_CUDA_COMPILER}|$ENV{CUDACXX}|${CMAKE_CUDA_HOST_COMPILER}|$ENV{CUDAHOSTCXX}"
        CACHE INTERNAL "")
    endif()
  endif()
  if(EXISTS "${MACGRAD_CUDA_NVCC}")
    set(MACGRAD_WITH_CUDA ON)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      # This machine's GPUs; without one A100 and Hopper, and through PTX whatever comes after.
      set(macgrad_architectures 80-real 90)
      if(macgrad_gpus)
        set(macgrad_architectures ${macgrad_gpus})
      endif()
      set(CMAKE_CUDA_ARCHITECTURES "${macgrad_architectures}" CACHE STRING "compute capabilities")
    endif()
    # A binary with CUDA must start on a machine without a driver.
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    enable_language(CUDA)
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
      # CMake 3.25 does not know that nvcc 12 and later compile C++20; the probe showed that it does.
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
      set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
    endif()
    set(CMAKE_CUDA_STANDARD 20)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    find_package(CUDAToolkit 12.0 REQUIRED)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " macgrad_architectures)
    set(MACGRAD_CUDA_STATUS "${MACGRAD_CUDA_VERSION}, compute ${macgrad_architectures}")
  else()
    set(MACGRAD_CUDA_STATUS "off (${MACGRAD_CUDA_REASON})")
    if(MACGRAD_CUDA STREQUAL "ON")
      message(FATAL_ERROR "MACGRAD_CUDA=ON: ${MACGRAD_CUDA_REASON}")
    endif()
    message(STATUS "CUDA is left out: ${MACGRAD_CUDA_REASON}")
  endif()
endif()
