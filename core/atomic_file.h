// The one way in which macgrad replaces files: written to a temporary file in the same folder,
// flushed to the disk and renamed, so that a reader (or a crash, a full disk, Ctrl-C) sees the
// whole old file or the whole new one, never a part.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace macgrad {

/// A file on its way to `path`. A symbolic link is followed: the file that it names is replaced,
/// and the link stays. Until commit() the earlier file stands; without it nothing is left behind.
class AtomicFile {
 public:
  /// Throws an Error if a file cannot be put there: check_writable(), or the folder cannot be
  /// written to.
  explicit AtomicFile(const std::string& path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// The file being written, for writers that need a path. They must write to it in place.
  const std::string& temporary() const { return temporary_; }

  /// Appends. Throws with the system's reason (and the free space when the disk is full).
  void write(const void* data, uint64_t bytes);

  /// Puts the file in its place.
  void commit();

 private:
  [[noreturn]] void fail(const char* action) const;

  std::string path_, target_, temporary_;
  int fd_;
};

/// Replaces `path` by `contents`.
void write_file_atomically(const std::string& path, std::string_view contents);

/// Throws unless a file at `path` could be replaced: it is a folder, a FIFO, a socket or a device,
/// a symbolic link that leads nowhere, or in a folder that cannot be written to. For programs that
/// would find out after long work.
void check_writable(const std::string& path);

/// Removes from `folder`, not from those below it, the temporary files of processes that have
/// ended. No AtomicFile of this process, and no process of another host, may be writing there.
void remove_abandoned_files(const std::string& folder);

}  // namespace macgrad
