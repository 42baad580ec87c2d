# Writes <build>/generated/macgrad/commit.h with the git commit ("-dirty" when tracked files differ,
# "unknown" outside a git checkout). Included by core/CMakeLists.txt it adds the build step; run as a
# script (cmake -P) it is that step. It runs again when HEAD moves or a source changes, and rewrites
# the file only when the commit differs, so at most core/version.cpp is compiled again.
if(CMAKE_SCRIPT_MODE_FILE)
  set(commit unknown)
  execute_process(COMMAND ${GIT} -C ${SOURCE} rev-parse --short=12 HEAD
    OUTPUT_VARIABLE hash OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE status)
  if(status EQUAL 0)
    set(commit ${hash})
    execute_process(
      COMMAND ${GIT} --no-optional-locks -C ${SOURCE} status --porcelain --untracked-files=no
      OUTPUT_VARIABLE changes ERROR_QUIET)
    if(changes)
      string(APPEND commit "-dirty")
    endif()
  endif()
  file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define MACGRAD_COMMIT \"${commit}\"\n")
  return()
endif()

find_program(MACGRAD_GIT git)
mark_as_advanced(MACGRAD_GIT)
set(macgrad_commit_header ${MACGRAD_GENERATED_DIR}/macgrad/commit.h)
set(macgrad_commit_watch "")
# A copy of the sources inside some other checkout must not show that one's commit.
if(MACGRAD_GIT AND EXISTS ${PROJECT_SOURCE_DIR}/.git)
  set(git ${MACGRAD_GIT})
  foreach(name HEAD logs/HEAD)
    execute_process(COMMAND ${git} -C ${PROJECT_SOURCE_DIR} rev-parse --git-path ${name}
      OUTPUT_VARIABLE path OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    get_filename_component(path "${path}" ABSOLUTE BASE_DIR ${PROJECT_SOURCE_DIR})
    if(EXISTS ${path} AND NOT IS_DIRECTORY ${path})
      list(APPEND macgrad_commit_watch ${path})
    endif()
  endforeach()
  file(GLOB_RECURSE macgrad_commit_sources CONFIGURE_DEPENDS
    ${PROJECT_SOURCE_DIR}/core/*.h ${PROJECT_SOURCE_DIR}/core/*.cpp
    ${PROJECT_SOURCE_DIR}/autograd/*.h ${PROJECT_SOURCE_DIR}/autograd/*.cpp
    ${PROJECT_SOURCE_DIR}/nn/*.h ${PROJECT_SOURCE_DIR}/nn/*.cpp
    ${PROJECT_SOURCE_DIR}/cuda/*.h ${PROJECT_SOURCE_DIR}/cuda/*.c*
    ${PROJECT_SOURCE_DIR}/experiments/*.h ${PROJECT_SOURCE_DIR}/experiments/*.cpp)
  list(APPEND macgrad_commit_watch ${macgrad_commit_sources})
else()
  set(git false)
endif()
add_custom_command(
  OUTPUT ${macgrad_commit_header}.stamp
  BYPRODUCTS ${macgrad_commit_header}
  COMMAND ${CMAKE_COMMAND} -DGIT=${git} -DSOURCE=${PROJECT_SOURCE_DIR}
          -DOUTPUT=${macgrad_commit_header} -P ${CMAKE_CURRENT_LIST_FILE}
  COMMAND ${CMAKE_COMMAND} -E touch ${macgrad_commit_header}.stamp
  DEPENDS ${macgrad_commit_watch} ${CMAKE_CURRENT_LIST_FILE}
  COMMENT "Recording the commit" VERBATIM)
add_custom_target(macgrad_commit DEPENDS ${macgrad_commit_header}.stamp)
add_dependencies(macgrad_core macgrad_commit)

# Facts of the build that only CMake knows, for core/version.cpp alone.
set_source_files_properties(version.cpp PROPERTIES COMPILE_DEFINITIONS
  "MACGRAD_VERSION=\"${PROJECT_VERSION}\";MACGRAD_BUILD_TYPE=\"${CMAKE_BUILD_TYPE}\";MACGRAD_SANITIZE=\"${MACGRAD_SANITIZE}\";MACGRAD_CUDA_STATUS=\"${MACGRAD_CUDA_STATUS}\";MACGRAD_CBLAS_LIBRARY=\"${MACGRAD_CBLAS_LIBRARY}\"")
