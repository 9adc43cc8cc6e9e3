// comm/pieces.h
//
// Memory in pieces that are as one, as the system's calls want it.
//
// Threads: one at a time. Allocates when there are more pieces than ever before.

#ifndef SLUICE_COMM_PIECES_H_
#define SLUICE_COMM_PIECES_H_

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace sluice {

struct Pieces {
  std::vector<iovec> list;  // none is empty
  size_t bytes = 0;         // in all

  void Add(void* data, size_t size);
  void Clear();
  // What lies at byte `at`, `most` bytes at most: up to the end of its piece.
  std::span<std::byte> Piece(size_t at, size_t most) const;
  // Likewise, in as many pieces as `to` has room for. Returns how many; `size` is their bytes.
  size_t Cut(size_t at, size_t most, std::span<iovec> to, size_t* size) const;
  void CutTo(size_t begin, size_t end, Pieces* part) const;

  void CopyOut(size_t at, std::span<std::byte> to) const;
  void CopyIn(size_t at, std::span<const std::byte> from) const;
  // These are of another process: reads their list, and of them what lies at byte `at`, to the same
  // place of `to`, and moves `at` behind it. 0, or an errno.
  int ReadList(pid_t process, uint64_t address, size_t count);
  int Read(pid_t process, const Pieces& to, size_t most, size_t* at) const;
  // All of it, to as much. What is in its place already stays.
  void CopyTo(const Pieces& to) const;
};

}  // namespace sluice

#endif  // SLUICE_COMM_PIECES_H_
