// What this binary is: version, commit, libraries, compiler, instruction set. Every program prints
// it for --version and stores it beside its results, so that a figure can be traced to its build.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace macgrad {

/// The project's version, for instance "0.1.0".
const char* version();

/// Short commit hash at build time, "-dirty" appended when tracked files differed from it, or
/// "unknown" outside a git checkout.
const char* commit();

/// Name and value of each fact of the build, in printing order: version, commit, build, compiler,
/// instruction set, vector maths, oneDNN, CBLAS, fmt, CUDA.
std::vector<std::pair<std::string, std::string>> build_facts();

/// The text of `PROGRAM --version`: a title line, then one line a fact.
std::string version_text(const std::string& program);

}  // namespace macgrad
