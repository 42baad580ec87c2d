# Shared by experiments/run, tests/run and .ci/run: installs what is missing, configures, builds.
# POSIX sh, to be sourced; the caller sets macgrad_root first.
#
# Environment: MACGRAD_JOBS       parallel compile jobs (default: the processors, at most one for
#                                 each 2 GiB of memory)
#              MACGRAD_CMAKE_ARGS further arguments for the configure step, for instance
#                                 -DMACGRAD_CUDA=ON; kept until other ones are given
#              MACGRAD_BUILD      build folder (default: build/release)
#              CMAKE_PREFIX_PATH  folders with libraries that are not packages of the system

macgrad_build=${MACGRAD_BUILD:-$macgrad_root/build/release}

macgrad_say() { printf '%s\n' "macgrad: $*" >&2; }

# Prints the Debian packages whose content is not found, one a line. Headers are asked of the
# compiler itself, so a library in CPATH or CMAKE_PREFIX_PATH counts as found. CBLAS is asked for by
# its library: the header also comes with the reference BLAS, which is slow and not what CMake takes.
macgrad_missing() {
  macgrad_cxx=${CXX:-c++}
  if ! command -v "$macgrad_cxx" >/dev/null 2>&1; then
    printf '%s\n' g++ libdnnl-dev libopenblas-openmp-dev libfmt-dev doctest-dev libcli11-dev \
      nlohmann-json3-dev zlib1g-dev libsentencepiece-dev
  else
    set --
    macgrad_machine=$("$macgrad_cxx" -dumpmachine)
    macgrad_ifs=$IFS
    IFS=':;'
    for macgrad_prefix in ${CMAKE_PREFIX_PATH:-}; do
      set -- "$@" "-I$macgrad_prefix/include" "-I$macgrad_prefix/include/$macgrad_machine" \
        "-B$macgrad_prefix/lib/" "-B$macgrad_prefix/lib/$macgrad_machine/" \
        "-B$macgrad_prefix/lib/$macgrad_machine/openblas-openmp/"
    done
    IFS=$macgrad_ifs
    # The compiler answers with a path where it finds the file, and with the name alone elsewhere.
    case $("$macgrad_cxx" "$@" -print-file-name=libopenblas.so)$("$macgrad_cxx" "$@" \
      -print-file-name=libcblas.so) in
      */*) ;;
      *) echo libopenblas-openmp-dev ;;
    esac
    "$macgrad_cxx" -E -P -x c++ "$@" - <<'HEADERS' 2>/dev/null | sed -n 's/^MISSING //p' | tr -d ' '
#if !__has_include(<oneapi/dnnl/dnnl.h>)
MISSING libdnnl-dev
#endif
#if !__has_include(<fmt/format.h>)
MISSING libfmt-dev
#endif
#if !__has_include(<doctest/doctest.h>)
MISSING doctest-dev
#endif
#if !__has_include(<CLI/CLI.hpp>)
MISSING libcli11-dev
#endif
#if !__has_include(<nlohmann/json.hpp>)
MISSING nlohmann-json3-dev
#endif
#if !__has_include(<zlib.h>)
MISSING zlib1g-dev
#endif
#if !__has_include(<sentencepiece_trainer.h>)
MISSING libsentencepiece-dev
#endif
HEADERS
  fi
  command -v cmake >/dev/null 2>&1 || echo cmake
  command -v ninja >/dev/null 2>&1 || command -v make >/dev/null 2>&1 || echo ninja-build
  command -v gnuplot >/dev/null 2>&1 || echo gnuplot-nox
}

# Whether macgrad builds without these packages: CBLAS stands in for oneDNN, and without gnuplot only
# the pictures are missing.
macgrad_optional() {
  for macgrad_package in "$@"; do
    case $macgrad_package in
      libdnnl-dev | gnuplot-nox) ;;
      *) return 1 ;;
    esac
  done
}

# Drops packages that macgrad can do without when this distribution has none of that name.
macgrad_known() {
  for macgrad_package in "$@"; do
    if macgrad_optional "$macgrad_package" && ! apt-cache show "$macgrad_package" >/dev/null 2>&1; then
      macgrad_say "no package $macgrad_package here; going on without it"
      continue
    fi
    printf '%s ' "$macgrad_package"
  done
}

macgrad_install_missing() {
  # shellcheck disable=SC2046  # package names have no spaces
  set -- $(macgrad_missing)
  [ $# -gt 0 ] || return 0
  # What a distribution does not have was found out before; ask apt only once.
  macgrad_skip=$macgrad_root/build/.unavailable-packages
  if [ "$*" = "$(cat "$macgrad_skip" 2>/dev/null)" ]; then return 0; fi
  if ! command -v apt-get >/dev/null 2>&1; then
    macgrad_say "missing, by their Debian names: $*"
    macgrad_say "install them with this system's package manager, or name their folder in" \
      "CMAKE_PREFIX_PATH, and run this again"
    macgrad_optional "$@"
    return
  fi
  macgrad_line="apt-get update && apt-get install -y --no-install-recommends $*"
  if [ "$(id -u)" = 0 ]; then
    macgrad_sudo=
  elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    macgrad_sudo='sudo -n'
  else
    macgrad_say "these packages are missing, and installing them needs root. Run this once:"
    printf '%s\n' "  sudo sh -c '$macgrad_line'" >&2
    macgrad_optional "$@"
    return
  fi
  macgrad_say "installing $*"
  # One broken list of another repository must not stop us; the install tells.
  $macgrad_sudo apt-get update -q >&2 </dev/null || true
  macgrad_packages=$(macgrad_known "$@")
  # shellcheck disable=SC2086
  if [ -n "$macgrad_packages" ]; then
    $macgrad_sudo env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -q --no-install-recommends $macgrad_packages >&2 </dev/null || {
      macgrad_say "apt could not install them. Try by hand: $macgrad_line"
      return 1
    }
  fi
  mkdir -p "$macgrad_root/build"
  macgrad_missing | tr '\n' ' ' | sed 's/ $//' >"$macgrad_skip"
  [ -s "$macgrad_skip" ] || rm -f "$macgrad_skip"
}

macgrad_jobs() {
  if [ -n "${MACGRAD_JOBS:-}" ]; then
    echo "$MACGRAD_JOBS"
    return
  fi
  macgrad_cpus=$(nproc 2>/dev/null || echo 1)
  macgrad_room=$(awk '/MemAvailable/ { print int($2 / 2097152) }' /proc/meminfo 2>/dev/null)
  [ "${macgrad_room:-0}" -ge 1 ] || macgrad_room=1
  if [ "$macgrad_cpus" -lt "$macgrad_room" ]; then echo "$macgrad_cpus"; else echo "$macgrad_room"; fi
}

# Configures the build folder when it is new, was made for another copy of the sources, or other
# arguments are asked for. CMake itself sees changed CMake files and added sources.
macgrad_configure() {
  macgrad_note=$macgrad_build/.macgrad-configured
  if [ -f "$macgrad_build/build.ninja" ] || [ -f "$macgrad_build/Makefile" ]; then
    macgrad_kept=$(cat "$macgrad_note" 2>/dev/null)
    macgrad_args=${MACGRAD_CMAKE_ARGS-$macgrad_kept}
    if grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$macgrad_root" "$macgrad_build/CMakeCache.txt" &&
      [ "$macgrad_args" = "$macgrad_kept" ]; then
      return 0
    fi
  else
    macgrad_args=${MACGRAD_CMAKE_ARGS-}
  fi
  set --
  if command -v ninja >/dev/null 2>&1; then set -- -G Ninja; else set -- -G 'Unix Makefiles'; fi
  if command -v ccache >/dev/null 2>&1; then
    set -- "$@" -DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache
  fi
  # shellcheck disable=SC2086  # the arguments are words
  cmake --fresh -S "$macgrad_root" -B "$macgrad_build" -DCMAKE_BUILD_TYPE=Release "$@" \
    $macgrad_args >&2 || return 1
  printf '%s\n' "$macgrad_args" >"$macgrad_note"
}

# macgrad_compile FOLDER [TARGET...]: builds; prints nothing when there is nothing to do. The status of
# the build goes through a file, because the status of a pipe is that of its last command. The `if`
# keeps `set -e` from ending the left side of the pipe before the status is written.
macgrad_compile() {
  macgrad_folder=$1
  shift
  if [ $# -gt 0 ]; then set -- --target "$@"; fi
  macgrad_status=$macgrad_folder/.macgrad-build-status
  rm -f "$macgrad_status"
  {
    if cmake --build "$macgrad_folder" -j "$(macgrad_jobs)" "$@" 2>&1 </dev/null; then
      echo succeeded >"$macgrad_status"
    fi
  } | while IFS= read -r macgrad_text; do
    case $macgrad_text in
      *'Re-checking globbed directories'* | *'no work to do'* | *'Built target'*) ;;
      *'Consolidate compiler generated'* | *'Recording the commit'*) ;;
      'ninja: Entering directory'*) ;;
      *) printf '%s\n' "$macgrad_text" >&2 ;;
    esac
  done
  if [ "$(cat "$macgrad_status" 2>/dev/null)" != succeeded ]; then
    macgrad_say "the build failed (see above)"
    return 1
  fi
}

# macgrad_tests FOLDER [CTEST ARGUMENTS]: side by side, with threads that sleep at barriers, because
# spinning ones would hold the processors that the other programs need.
macgrad_tests() {
  macgrad_folder=$1
  shift
  OMP_WAIT_POLICY=passive ctest --test-dir "$macgrad_folder" -j "$(macgrad_jobs)" \
    --output-on-failure "$@"
}

# macgrad_bootstrap [TARGET...]: all of it, for the build folder.
macgrad_bootstrap() {
  macgrad_install_missing && macgrad_configure && macgrad_compile "$macgrad_build" "$@"
}
