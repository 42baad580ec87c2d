// `inspect`: records training steps and writes the page and its files.
#pragma once

namespace macgrad::experiments {

/// argv[0] is the program's name.
int record_command(int argc, const char* const* argv);

}  // namespace macgrad::experiments
