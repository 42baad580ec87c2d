// The program nmse: its command line, table, files and heat maps.
#pragma once

namespace macgrad::experiments {

/// Returns the exit code.
int nmse_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
