// comm/pieces.h
//
// Memory in pieces that are as one, as the system's calls want it.
//
// Threads: one at a time. Allocates when there are more pieces than ever before.

#ifndef SLUICE_COMM_PIECES_H_
#define SLUICE_COMM_PIECES_H_

#include <sys/uio.h>

#include <cstddef>
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
  Pieces Between(size_t begin, size_t end) const;

  void CopyOut(size_t at, std::span<std::byte> to) const;
  void CopyIn(size_t at, std::span<const std::byte> from) const;
  // All of it, to as much. What is in its place already stays.
  void CopyTo(const Pieces& to) const;
};

}  // namespace sluice

#endif  // SLUICE_COMM_PIECES_H_
