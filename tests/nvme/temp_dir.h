// tests/nvme/temp_dir.h
//
// An empty directory for one test, removed with all that lies in it, and memory for direct I/O.

#ifndef SLUICE_TESTS_NVME_TEMP_DIR_H_
#define SLUICE_TESTS_NVME_TEMP_DIR_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <random>
#include <string>

#include "core/status.h"
#include "core/types.h"

namespace sluice {

class TempDir {
 public:
  TempDir() : path_(::testing::TempDir() + "/sluice-nvme-XXXXXX") {
    SLUICE_CHECK(mkdtemp(path_.data()) != nullptr);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::string& path() const { return path_; }
  bool empty() const { return std::filesystem::is_empty(path_); }

 private:
  std::string path_;
};

// Zeroed memory at a multiple of 4096.
class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t size)
      : size_(size), pages_(new Page[(size + sizeof(Page) - 1) / sizeof(Page)]()) {}
  MemoryView view() { return {reinterpret_cast<std::byte*>(pages_.get()), size_}; }

 private:
  struct alignas(4096) Page {
    std::byte bytes[4096];
  };
  size_t size_;
  std::unique_ptr<Page[]> pages_;
};

inline void FillRandom(MemoryView memory, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (std::byte& b : memory) b = static_cast<std::byte>(random());
}

inline bool SameBytes(ConstMemoryView a, ConstMemoryView b) { return std::ranges::equal(a, b); }

}  // namespace sluice

#endif  // SLUICE_TESTS_NVME_TEMP_DIR_H_
