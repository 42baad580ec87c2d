# Finds what macgrad's libraries link to; used by the build and, installed beside macgradConfig.cmake,
# by find_package(macgrad). Everything is searched under CMAKE_PREFIX_PATH first, so a machine without
# packages can use a folder of unpacked ones. oneDNN and CBLAS are found by header and library: their
# own CMake files differ between distributions (Debian's asks for OpenCL).
#
# Targets: fmt::fmt, OpenMP::OpenMP_CXX, macgrad::cblas, macgrad::onednn (only when found).
include(CMakeFindDependencyMacro)
find_dependency(OpenMP COMPONENTS CXX)
find_dependency(fmt)

find_path(MACGRAD_CBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas-openmp openblas)
find_library(MACGRAD_CBLAS_LIBRARY NAMES openblas cblas PATH_SUFFIXES openblas-openmp openblas)
mark_as_advanced(MACGRAD_CBLAS_INCLUDE MACGRAD_CBLAS_LIBRARY)
if(NOT MACGRAD_CBLAS_INCLUDE OR NOT MACGRAD_CBLAS_LIBRARY)
  message(FATAL_ERROR "macgrad needs a CBLAS (float64 GEMM): install libopenblas-openmp-dev, "
                      "or point CMAKE_PREFIX_PATH at one")
endif()
if(NOT TARGET macgrad::cblas)
  add_library(macgrad::cblas UNKNOWN IMPORTED)
  set_target_properties(macgrad::cblas PROPERTIES
    IMPORTED_LOCATION "${MACGRAD_CBLAS_LIBRARY}"
    INTERFACE_INCLUDE_DIRECTORIES "${MACGRAD_CBLAS_INCLUDE}")
endif()

find_path(MACGRAD_ONEDNN_INCLUDE oneapi/dnnl/dnnl.h)
find_library(MACGRAD_ONEDNN_LIBRARY NAMES dnnl)
mark_as_advanced(MACGRAD_ONEDNN_INCLUDE MACGRAD_ONEDNN_LIBRARY)
set(MACGRAD_WITH_ONEDNN 0)
set(MACGRAD_ONEDNN_VERSION "none (CBLAS serves float32)")
if(MACGRAD_ONEDNN_INCLUDE AND MACGRAD_ONEDNN_LIBRARY)
  set(MACGRAD_WITH_ONEDNN 1)
  file(GLOB macgrad_onednn_header "${MACGRAD_ONEDNN_INCLUDE}/oneapi/dnnl/dnnl_version*.h")
  set(MACGRAD_ONEDNN_VERSION "")
  foreach(part MAJOR MINOR PATCH)
    foreach(header IN LISTS macgrad_onednn_header)
      file(STRINGS "${header}" line REGEX "define DNNL_VERSION_${part} +[0-9]+")
      if(line MATCHES "([0-9]+)$")
        string(APPEND MACGRAD_ONEDNN_VERSION ".${CMAKE_MATCH_1}")
      endif()
    endforeach()
  endforeach()
  string(SUBSTRING "${MACGRAD_ONEDNN_VERSION}" 1 -1 MACGRAD_ONEDNN_VERSION)
  if(NOT TARGET macgrad::onednn)
    add_library(macgrad::onednn UNKNOWN IMPORTED)
    set_target_properties(macgrad::onednn PROPERTIES
      IMPORTED_LOCATION "${MACGRAD_ONEDNN_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${MACGRAD_ONEDNN_INCLUDE}")
  endif()
endif()
