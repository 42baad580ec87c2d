# sentencepiece brings no CMake file: header and libraries are looked for, under CMAKE_PREFIX_PATH
# first. A static library needs protobuf-lite beside it, where that was not built into it.
#
# Target: macgrad::sentencepiece.
find_path(MACGRAD_SENTENCEPIECE_INCLUDE sentencepiece_trainer.h)
find_library(MACGRAD_SENTENCEPIECE_LIBRARY NAMES sentencepiece)
find_library(MACGRAD_SENTENCEPIECE_TRAIN_LIBRARY NAMES sentencepiece_train)
mark_as_advanced(MACGRAD_SENTENCEPIECE_INCLUDE MACGRAD_SENTENCEPIECE_LIBRARY
                 MACGRAD_SENTENCEPIECE_TRAIN_LIBRARY)
if(NOT MACGRAD_SENTENCEPIECE_INCLUDE OR NOT MACGRAD_SENTENCEPIECE_LIBRARY OR
   NOT MACGRAD_SENTENCEPIECE_TRAIN_LIBRARY)
  message(FATAL_ERROR "the experiments need sentencepiece (subwords): install libsentencepiece-dev, "
                      "point CMAKE_PREFIX_PATH at it, or build the libraries alone with "
                      "-DMACGRAD_EXPERIMENTS=OFF -DMACGRAD_TESTS=OFF")
endif()
add_library(macgrad::sentencepiece INTERFACE IMPORTED GLOBAL)
target_include_directories(macgrad::sentencepiece INTERFACE ${MACGRAD_SENTENCEPIECE_INCLUDE})
target_link_libraries(macgrad::sentencepiece INTERFACE
  ${MACGRAD_SENTENCEPIECE_TRAIN_LIBRARY} ${MACGRAD_SENTENCEPIECE_LIBRARY})
if(MACGRAD_SENTENCEPIECE_LIBRARY MATCHES "\\.a$")
  find_library(MACGRAD_PROTOBUF_LITE_LIBRARY NAMES protobuf-lite)
  mark_as_advanced(MACGRAD_PROTOBUF_LITE_LIBRARY)
  if(MACGRAD_PROTOBUF_LITE_LIBRARY)
    target_link_libraries(macgrad::sentencepiece INTERFACE ${MACGRAD_PROTOBUF_LITE_LIBRARY})
  endif()
endif()
