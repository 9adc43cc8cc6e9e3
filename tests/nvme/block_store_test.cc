#include "nvme/block_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "fmt/format.h"
#include "tests/nvme/temp_dir.h"

namespace sluice {
namespace {

using testing::AllOf;
using testing::ContainsRegex;
using testing::HasSubstr;

class Transfer : public BlockTransfer {
 public:
  void OnDone() override { ++ended; }
  int ended = 0;
};

// A store over two directories, with blocks of odd sizes, on the engine that MakeIoEngine chooses.
class BlockStoreTest : public testing::Test {
 protected:
  static constexpr IoEngine::Limits kLimits{.in_flight_max = 4, .submit_batch_max = 2};

  void SetUp() override {
    std::vector<BlockShape> shapes;
    for (int64_t b = 0; b < 40; ++b) shapes.push_back({.size = Bytes(20'000 + 4'001 * (b % 7))});
    // Of several pieces each, the last one short, in each number of columns, two alike.
    for (uint32_t columns = 1; columns <= kColumnsMax; ++columns) {
      for (int i = 0; i < 2; ++i)
        shapes.push_back({.size = Bytes(12 * 50'000), .kind = 1, .columns = columns});
    }
    const Drive drives[] = {{.path = a_.path()}, {.path = b_.path()}};
    table_ = PlanSegments(shapes, drives, {.segment_bytes = KiB(640), .spares = 1});
    auto files = CreateSegments(table_);
    ASSERT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
    auto engine = MakeIoEngine(IoEngineKind::kAuto, files_, {}, kLimits, &clock_);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    store_ =
        std::make_unique<BlockStore>(table_, engine_.get(), kLimits, &clock_, &metrics_, &trace_);
  }

  void WaitFor(const Transfer& transfer) {
    const int before = transfer.ended;
    while (transfer.ended == before) store_->Poll(kForever);
  }

  // Writes the next generation of `block`, whose bytes follow from `seed`.
  absl::Status Write(uint32_t block, uint64_t seed) {
    Transfer transfer;
    store_->PrepareWrite(&transfer, BlockIndex(block), buffer_.view());
    FillRandom(transfer.data(), seed);
    BlockStore::Seal(&transfer);
    store_->StartWrite(&transfer, IoPriority::kNormal);
    WaitFor(transfer);
    return transfer.status();
  }

  // The first error of reading and verifying `block`; its bytes are in buffer_ then.
  absl::Status Read(uint32_t block) {
    Transfer transfer;
    store_->StartRead(&transfer, BlockIndex(block), buffer_.view(), IoPriority::kUrgent);
    WaitFor(transfer);
    SLUICE_RETURN_IF_ERROR(transfer.status());
    return BlockStore::Verify(transfer);
  }

  bool Holds(uint32_t block, uint64_t seed) {
    AlignedBuffer expected(table_.block_sizes[block].size());
    FillRandom(expected.view(), seed);
    return SameBytes(buffer_.view().first(table_.block_sizes[block].size()), expected.view());
  }

  // The bytes of a block's extent as they lie in the file, past the store.
  MemoryView Raw(uint32_t block, AlignedBuffer* buffer) {
    const Extent& extent = store_->extent(BlockIndex(block));
    const MemoryView view = buffer->view().first(extent.length.size());
    SLUICE_CHECK(pread(Fd(block), view.data(), view.size(), extent.offset.value()) ==
                 static_cast<ssize_t>(view.size()));
    return view;
  }
  void Overwrite(uint32_t block, MemoryView bytes) {
    const Extent& extent = store_->extent(BlockIndex(block));
    SLUICE_CHECK(pwrite(Fd(block), bytes.data(), extent.length.size(), extent.offset.value()) ==
                 extent.length.value());
  }
  const std::string& PathOf(uint32_t block) {
    return store_->drives()[store_->drive(BlockIndex(block)).value()].path;
  }
  int Fd(uint32_t block) { return files_[store_->extent(BlockIndex(block)).file.value()].fd(); }

  TempDir a_;
  TempDir b_;
  SteadyClock clock_;
  Metrics metrics_;
  TraceEvents trace_{1000};
  SegmentTable table_;
  std::vector<DirectFile> files_;
  std::unique_ptr<IoEngine> engine_;
  std::unique_ptr<BlockStore> store_;
  static constexpr uint32_t kOfPieces = 40;  // the first of those
  AlignedBuffer buffer_{640 << 10};
  AlignedBuffer other_{640 << 10};
};

TEST_F(BlockStoreTest, ReadsTheLastGeneration) {
  for (uint64_t generation = 1; generation <= 3; ++generation) {
    for (uint32_t b = 0; b < table_.block_sizes.size(); ++b)
      ASSERT_TRUE(Write(b, 100 * generation + b).ok());
    for (uint32_t b = 0; b < table_.block_sizes.size(); ++b) {
      const absl::Status read = Read(b);
      ASSERT_TRUE(read.ok()) << read;
      EXPECT_TRUE(Holds(b, 100 * generation + b));
    }
  }
  EXPECT_TRUE(a_.empty() && b_.empty());
}

TEST_F(BlockStoreTest, ABlockThatWasNeverWrittenEndsThroughPoll) {
  ASSERT_TRUE(Write(4, 1).ok());
  Transfer transfer;
  store_->StartRead(&transfer, BlockIndex(3), buffer_.view(), IoPriority::kNormal);
  EXPECT_EQ(transfer.ended, 0);
  EXPECT_FALSE(store_->idle());
  EXPECT_EQ(store_->Poll(kForever), 1u);
  EXPECT_EQ(transfer.ended, 1);
  EXPECT_TRUE(store_->idle());
  EXPECT_TRUE(absl::IsDataLoss(transfer.status()));
  EXPECT_THAT(Message(transfer.status()), HasSubstr("block 3 is read but was never written"));
  EXPECT_TRUE(Read(4).ok());
}

TEST_F(BlockStoreTest, AFlippedBitIsFound) {
  ASSERT_TRUE(Write(5, 1).ok());
  const size_t size = table_.block_sizes[5].size();
  for (size_t at : {size_t{0}, size_t{1}, size_t{4095}, size_t{4096}, size / 2, size - 1}) {
    for (int bit : {0, 7}) {
      const MemoryView raw = Raw(5, &other_);
      raw[at] ^= static_cast<std::byte>(1 << bit);
      Overwrite(5, raw);
      const absl::Status status = Read(5);
      EXPECT_TRUE(absl::IsDataLoss(status)) << at;
      EXPECT_THAT(Message(status),
                  AllOf(HasSubstr("block 5 of generation 1"), HasSubstr("swap file"),
                        HasSubstr(PathOf(5)), HasSubstr("checksum")));
      raw[at] ^= static_cast<std::byte>(1 << bit);
      Overwrite(5, raw);
    }
  }
  EXPECT_TRUE(Read(5).ok());
}

// Wherever it is: the error says which piece.
TEST_F(BlockStoreTest, AFlippedBitIsFoundInItsPiece) {
  for (uint32_t b = kOfPieces; b < table_.block_sizes.size(); ++b) {
    ASSERT_TRUE(Write(b, b).ok());
    const BlockPieces& pieces = table_.pieces[b];
    ASSERT_GT(pieces.count(), 1u);
    const MemoryView raw = Raw(b, &other_);
    for (uint32_t p = 0; p < pieces.count(); ++p) {
      for (uint32_t c = 0; c < pieces.columns(); ++c) {
        // Of a vector, a stripe's half, a stripe, a sector, and the ends.
        for (const size_t of_part : {0UL, 1UL, 3UL, 4UL, 7UL, 8UL, 63UL, 64UL, 127UL, 128UL, 511UL,
                                     512UL, pieces.size(p) / 2, pieces.size(p) - 1}) {
          std::byte& byte = raw[pieces.begin(p, c) + of_part];
          byte ^= std::byte{0x10};
          Overwrite(b, raw);
          const absl::Status status = Read(b);
          byte ^= std::byte{0x10};
          ASSERT_TRUE(absl::IsDataLoss(status)) << of_part << " of piece " << p;
          const int64_t offset = store_->extent(BlockIndex(b)).offset.value() +
                                 static_cast<int64_t>(pieces.begin(p, 0));
          ASSERT_THAT(Message(status),
                      AllOf(HasSubstr(fmt::format("block {} of generation 1", b)),
                            HasSubstr(fmt::format("{} bytes at {} ", pieces.size(p), offset)),
                            HasSubstr(PathOf(b))));
        }
      }
    }
    Overwrite(b, raw);
    EXPECT_TRUE(Read(b).ok());
  }
}

// Pieces that changed places in their block, in a column of it, with another block's, or with those
// of the generation before: each whole and once sealed, but not as this one.
TEST_F(BlockStoreTest, APieceInAnothersPlaceIsFound) {
  for (uint32_t b = kOfPieces; b < table_.block_sizes.size(); b += 2) {
    ASSERT_TRUE(Write(b, 1).ok());
    const MemoryView stale = Raw(b, &other_);
    const std::vector<std::byte> old(stale.begin(), stale.end());
    ASSERT_TRUE(Write(b + 1, 2).ok());
    const MemoryView view = Raw(b + 1, &other_);
    const std::vector<std::byte> neighbour(view.begin(), view.end());
    ASSERT_TRUE(Write(b, 3).ok());
    const MemoryView raw = Raw(b, &other_);
    const std::vector<std::byte> whole(raw.begin(), raw.end());
    const BlockPieces& pieces = table_.pieces[b];
    const auto copy = [&](const std::vector<std::byte>& from, size_t at, size_t to, size_t n) {
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(at), n,
                  raw.begin() + static_cast<std::ptrdiff_t>(to));
    };
    const auto expect_found = [&](const char* what) {
      Overwrite(b, raw);
      EXPECT_TRUE(absl::IsDataLoss(Read(b))) << what << ", " << pieces.columns() << " columns";
      std::ranges::copy(whole, raw.begin());
    };
    for (uint32_t p = 0; p < pieces.count(); ++p) {
      for (const auto* from : {&old, &neighbour}) {
        for (uint32_t c = 0; c < pieces.columns(); ++c)
          copy(*from, pieces.begin(p, c), pieces.begin(p, c), pieces.size(p));
        expect_found("a whole piece");
        copy(*from, pieces.begin(p, 0), pieces.begin(p, 0), pieces.size(p));
        expect_found("a column of a piece");
      }
      if (pieces.size(p) != pieces.size(0)) continue;
      for (uint32_t c = 0; c < pieces.columns() && p > 0; ++c) {
        copy(whole, pieces.begin(0, c), pieces.begin(p, c), pieces.size(p));
        copy(whole, pieces.begin(p, c), pieces.begin(0, c), pieces.size(p));
        if (c + 1 == pieces.columns()) expect_found("two pieces");
      }
      if (pieces.columns() == 1) continue;
      copy(whole, pieces.begin(p, 0), pieces.begin(p, 1), pieces.size(p));
      copy(whole, pieces.begin(p, 1), pieces.begin(p, 0), pieces.size(p));
      expect_found("two columns");
    }
    Overwrite(b, raw);
    EXPECT_TRUE(Read(b).ok());
  }
}

// Piece by piece, with sums made elsewhere, is the same as the whole.
TEST_F(BlockStoreTest, PiecesAreSealedAndVerifiedOneByOne) {
  for (uint32_t b = kOfPieces; b < table_.block_sizes.size(); ++b) {
    const BlockPieces& pieces = table_.pieces[b];
    Transfer write;
    store_->PrepareWrite(&write, BlockIndex(b), buffer_.view());
    FillRandom(write.data(), b);
    for (uint32_t p = pieces.count(); p-- > 0;)
      BlockStore::SealPiece(&write, p, pieces.Sums(write.data(), p));
    BlockStore::EndSeal(&write);
    store_->StartWrite(&write, IoPriority::kNormal);
    WaitFor(write);
    ASSERT_TRUE(Read(b).ok());
    Transfer read;
    store_->StartRead(&read, BlockIndex(b), buffer_.view(), IoPriority::kNormal);
    WaitFor(read);
    for (uint32_t p = 0; p < pieces.count(); ++p) {
      const StripeSums sums = pieces.Sums(read.data(), p);
      EXPECT_TRUE(BlockStore::VerifyPiece(read, p, sums).ok());
      for (const size_t word : {0UL, 7UL}) {
        StripeSums other = sums;
        other.words[word] ^= uint64_t{1} << 63;
        EXPECT_TRUE(absl::IsDataLoss(BlockStore::VerifyPiece(read, p, other)));
      }
    }
    EXPECT_TRUE(BlockStore::VerifyPadding(read).ok());
  }
}

TEST_F(BlockStoreTest, AStaleBlockIsFound) {
  ASSERT_TRUE(Write(6, 1).ok());
  const MemoryView old = Raw(6, &other_);
  ASSERT_TRUE(Write(6, 2).ok());
  Overwrite(6, old);  // as if the second write had been lost
  EXPECT_TRUE(absl::IsDataLoss(Read(6)));
  ASSERT_TRUE(Write(6, 3).ok());
  EXPECT_TRUE(Read(6).ok());
}

TEST_F(BlockStoreTest, AMisplacedBlockIsFound) {
  ASSERT_EQ(table_.block_sizes[0], table_.block_sizes[7]);
  ASSERT_TRUE(Write(0, 1).ok());
  ASSERT_TRUE(Write(7, 2).ok());
  const MemoryView other = Raw(7, &other_);
  Overwrite(0, other);
  EXPECT_TRUE(absl::IsDataLoss(Read(0)));
  EXPECT_TRUE(Read(7).ok());
}

TEST_F(BlockStoreTest, WhatFollowsABlockIsZeroAndFoundToBe) {
  ASSERT_TRUE(Write(1, 1).ok());
  const MemoryView raw = Raw(1, &other_);
  const MemoryView padding = raw.subspan(table_.block_sizes[1].size());
  ASSERT_FALSE(padding.empty());
  for (std::byte b : padding) EXPECT_EQ(b, std::byte{0});
  for (const size_t at : {size_t{0}, padding.size() / 2, padding.size() - 1}) {
    padding[at] = std::byte{1};
    Overwrite(1, raw);
    const absl::Status status = Read(1);
    EXPECT_TRUE(absl::IsDataLoss(status));
    const int64_t offset = store_->extent(BlockIndex(1)).offset.value() +
                           table_.block_sizes[1].value() + static_cast<int64_t>(at);
    EXPECT_THAT(Message(status), AllOf(HasSubstr("block 1 of generation 1"), HasSubstr(PathOf(1)),
                                       HasSubstr(fmt::format("the padding at {} of", offset))));
    padding[at] = std::byte{0};
  }
  Overwrite(1, raw);
  EXPECT_TRUE(Read(1).ok());
}

TEST_F(BlockStoreTest, ACancelledWriteLeavesTheBlockAsItWas) {
  ASSERT_TRUE(Write(2, 1).ok());
  Transfer transfer;
  store_->PrepareWrite(&transfer, BlockIndex(2), other_.view());
  BlockStore::Seal(&transfer);
  store_->Cancel(&transfer);
  EXPECT_TRUE(store_->idle());
  EXPECT_TRUE(Read(2).ok());
  EXPECT_TRUE(Holds(2, 1));
  ASSERT_TRUE(Write(2, 5).ok());
  EXPECT_TRUE(Read(2).ok());
  EXPECT_TRUE(Holds(2, 5));
}

TEST_F(BlockStoreTest, MoreThanFitsInTheEngineIsQueuedAndCounted) {
  AlignedBuffer memory(kOfPieces << 16);
  std::vector<Transfer> transfers(kOfPieces);
  Bytes total;
  for (uint32_t b = 0; b < kOfPieces; ++b) {
    store_->PrepareWrite(&transfers[b], BlockIndex(b), memory.view().subspan(b << 16, 1 << 16));
    FillRandom(transfers[b].data(), b);
    BlockStore::Seal(&transfers[b]);
    store_->StartWrite(&transfers[b], b % 3 == 0 ? IoPriority::kUrgent : IoPriority::kNormal);
    total += store_->extent_length(BlockIndex(b));
  }
  size_t ended = 0;
  while (!store_->idle()) ended += store_->Poll(kForever);
  EXPECT_EQ(ended, kOfPieces);
  for (const Transfer& transfer : transfers) {
    EXPECT_EQ(transfer.ended, 1);
    EXPECT_TRUE(transfer.status().ok()) << transfer.status();
  }
  ASSERT_TRUE(Read(9).ok());
  EXPECT_EQ(metrics_.Get("nvme_writes")->value(), int64_t{kOfPieces});
  EXPECT_EQ(metrics_.Get("nvme_write_bytes")->value(), total.value());
  EXPECT_EQ(metrics_.Get("nvme_reads")->value(), 1);
  EXPECT_EQ(metrics_.Get("nvme_read_bytes")->value(), store_->extent_length(BlockIndex(9)).value());
}

TEST_F(BlockStoreTest, TracesReadsAndWritesOnTracksOfTheirOwn) {
  ASSERT_TRUE(Write(8, 1).ok());
  ASSERT_TRUE(Read(8).ok());
  const std::string path = a_.path() + "/trace.json";
  ASSERT_TRUE(trace_.WriteChromeJson(path).ok());
  std::ifstream file(path);
  const std::string json{std::istreambuf_iterator<char>(file), {}};
  EXPECT_THAT(json, AllOf(HasSubstr("nvme read"), HasSubstr("nvme write"),
                          ContainsRegex("read #?8"), ContainsRegex("write #?8")));
}

TEST_F(BlockStoreTest, OneTransferOfABlockAtATime) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  ASSERT_TRUE(Write(0, 1).ok());
  Transfer first;
  Transfer second;
  store_->StartRead(&first, BlockIndex(0), buffer_.view(), IoPriority::kNormal);
  EXPECT_DEATH(store_->StartRead(&second, BlockIndex(0), other_.view(), IoPriority::kNormal),
               "two transfers of one block");
  WaitFor(first);
}

TEST_F(BlockStoreTest, AWriteThatWasNotSealedIsABug) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  Transfer transfer;
  store_->PrepareWrite(&transfer, BlockIndex(0), buffer_.view());
  EXPECT_DEATH(store_->StartWrite(&transfer, IoPriority::kNormal), "must be sealed");
}

}  // namespace
}  // namespace sluice
