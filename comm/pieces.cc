#include "comm/pieces.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace sluice {

void Pieces::Add(void* data, size_t size) {
  if (size == 0) return;
  list.push_back({data, size});
  bytes += size;
}

void Pieces::Clear() {
  list.clear();
  bytes = 0;
}

size_t Pieces::Cut(size_t at, size_t most, std::span<iovec> to, size_t* size) const {
  size_t count = 0;
  *size = 0;
  for (const iovec& piece : list) {
    if (count == to.size() || *size == most) break;
    if (at >= piece.iov_len) {
      at -= piece.iov_len;
      continue;
    }
    const size_t n = std::min(piece.iov_len - at, most - *size);
    to[count++] = {static_cast<std::byte*>(piece.iov_base) + at, n};
    *size += n;
    at = 0;
  }
  return count;
}

std::span<std::byte> Pieces::Piece(size_t at, size_t most) const {
  iovec piece{};
  size_t size = 0;
  (void)Cut(at, most, std::span(&piece, 1), &size);
  return {static_cast<std::byte*>(piece.iov_base), size};
}

void Pieces::CutTo(size_t begin, size_t end, Pieces* part) const {
  part->Clear();
  while (begin < end) {
    const std::span<std::byte> piece = Piece(begin, end - begin);
    part->Add(piece.data(), piece.size());
    begin += piece.size();
  }
}

void Pieces::CopyOut(size_t at, std::span<std::byte> to) const {
  while (!to.empty()) {
    const std::span<std::byte> piece = Piece(at, to.size());
    std::memcpy(to.data(), piece.data(), piece.size());
    at += piece.size();
    to = to.subspan(piece.size());
  }
}

void Pieces::CopyIn(size_t at, std::span<const std::byte> from) const {
  while (!from.empty()) {
    const std::span<std::byte> piece = Piece(at, from.size());
    std::memcpy(piece.data(), from.data(), piece.size());
    at += piece.size();
    from = from.subspan(piece.size());
  }
}

int Pieces::ReadList(pid_t process, uint64_t address, size_t count) {
  Clear();
  list.resize(count);
  for (size_t at = 0, all = count * sizeof(iovec); at < all;) {
    const iovec to{reinterpret_cast<std::byte*>(list.data()) + at, all - at};
    const iovec from{reinterpret_cast<void*>(address + at), all - at};
    const ssize_t n = process_vm_readv(process, &to, 1, &from, 1, 0);
    if (n <= 0) return n < 0 ? errno : EFAULT;
    at += static_cast<size_t>(n);
  }
  for (const iovec& piece : list) bytes += piece.iov_len;
  return 0;
}

int Pieces::Read(pid_t process, const Pieces& to, size_t most, size_t* at) const {
  std::array<iovec, 64> here, there;
  size_t size = 0;
  const size_t here_count = to.Cut(*at, most, here, &size);
  const size_t there_count = Cut(*at, size, there, &size);
  const ssize_t n =
      process_vm_readv(process, here.data(), here_count, there.data(), there_count, 0);
  if (n <= 0) return n < 0 ? errno : EFAULT;
  *at += static_cast<size_t>(n);
  return 0;
}

void Pieces::CopyTo(const Pieces& to) const {
  for (size_t at = 0; at < bytes;) {
    const std::span<std::byte> source = Piece(at, bytes - at);
    const std::span<std::byte> target = to.Piece(at, source.size());
    if (source.data() != target.data()) std::memcpy(target.data(), source.data(), target.size());
    at += target.size();
  }
}

}  // namespace sluice
