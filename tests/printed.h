// What code prints to a standard stream.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>

#include "macgrad/tests/temporary_folder.h"

namespace macgrad::testing {

/// `stream`: stdout or stderr.
inline std::string printed(std::FILE* stream, const std::function<void()>& body) {
  const TemporaryFolder folder;
  std::fflush(stream);
  const int descriptor = fileno(stream), saved = dup(descriptor);
  const int file = open((folder / "text").c_str(), O_WRONLY | O_CREAT, 0600);
  dup2(file, descriptor);
  close(file);
  body();
  std::fflush(stream);
  dup2(saved, descriptor);
  close(saved);
  std::ifstream text(folder / "text", std::ios::binary);
  return {std::istreambuf_iterator<char>(text), {}};
}

}  // namespace macgrad::testing
