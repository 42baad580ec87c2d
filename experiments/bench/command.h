// The program bench: its command line, and the rows as JSON.
#pragma once

namespace macgrad::experiments {

/// Returns the exit code: 1 when a row failed.
int bench_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
