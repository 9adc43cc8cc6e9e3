// What becomes of tuned settings in numbers; over the C ABI: c_api_tuned_test.cc.

#include "offload/run/tuned_config.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>

#include "offload/run/factory.h"

namespace sluice {
namespace {

TEST(TunedConfigTest, AChunkIsTheLargestThatFitsARequest) {
  for (const int64_t state_bytes : {6, 8, 10, 12}) {
    const Bytes cell(state_bytes * kCellElements);
    for (int64_t request = 4096; request <= int64_t{8} << 20; request += 4096) {
      const int64_t elements = ChunkElementsOf(Bytes(request), cell);
      ASSERT_EQ(elements % kCellElements, 0);
      ASSERT_GE(elements, kCellElements);
      if (elements > kCellElements) {
        ASSERT_LE(elements * state_bytes, request);
      }
      ASSERT_GT((elements + kCellElements) * state_bytes, request);
    }
  }
}

TEST(TunedConfigTest, RanksOfAHostShareADepthOfTheFileAndNoOther) {
  for (const uint32_t depth : {1u, 2u, 7u, 16u, 1024u}) {
    for (const uint32_t ranks : {1u, 2u, 3u, 8u, 100u}) {
      for (const SettingFrom from :
           {SettingFrom::kDefault, SettingFrom::kGiven, SettingFrom::kTuned}) {
        RuntimeConfig config;
        config.io.in_flight_max = depth;
        config.io_settings.depth = from;
        ShareTunedDepth(ranks, &config);
        const uint32_t each = config.io.in_flight_max;
        if (from != SettingFrom::kTuned || ranks == 1) {
          EXPECT_EQ(each, depth);
          continue;
        }
        EXPECT_GE(each, 2u);
        EXPECT_GE(each * ranks, depth);  // together no less,
        if (each > 2) {
          EXPECT_LT((each - 1) * ranks, depth);  // and none has one too many
        }
      }
    }
  }
}

}  // namespace
}  // namespace sluice
