#include "offload/plan/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string_view>

namespace sluice {
namespace {

using testing::ElementsAre;

// Iterations written as letters: one acquires the units of these, in order.
class TraceTest : public testing::Test {
 protected:
  static UnitIndex Unit(char letter) { return UnitIndex(static_cast<uint32_t>(letter - 'a')); }

  // Whether each acquisition was the one expected: "+" or "-".
  std::string Iterate(uint32_t key, std::string_view letters) {
    book_.Begin(key);
    std::string expected;
    for (const char letter : letters) {
      expected += book_.OnAcquire(Unit(letter)) ? '+' : '-';
      book_.OnRelease(Unit(letter));
    }
    book_.End();
    return expected;
  }
  std::string Latest(uint32_t key) const {
    const Trace* trace = book_.Latest(key);
    std::string letters;
    if (trace == nullptr) return "none";
    for (const UnitIndex unit : Acquisitions(*trace))
      letters += static_cast<char>('a' + unit.value());
    return letters;
  }

  TraceBook book_;
};

TEST_F(TraceTest, TheFirstIterationIsRecordedAndThenExpected) {
  EXPECT_EQ("none", Latest(0));
  EXPECT_EQ("----", Iterate(0, "abba"));
  EXPECT_EQ("abba", Latest(0));
  EXPECT_EQ("++++", Iterate(0, "abba"));
  EXPECT_EQ(0, book_.departures());
}

TEST_F(TraceTest, ReleasesAreRecordedWhereTheyCame) {
  book_.Begin(0);
  book_.OnAcquire(Unit('a'));
  book_.OnAcquire(Unit('b'));
  book_.OnRelease(Unit('a'));
  book_.End();
  EXPECT_THAT(*book_.Latest(0), ElementsAre(TraceStep{Unit('a'), true}, TraceStep{Unit('b'), true},
                                            TraceStep{Unit('a'), false}));
}

TEST_F(TraceTest, KeysHaveTracesOfTheirOwn) {
  Iterate(0, "abc");
  Iterate(1, "ca");
  EXPECT_EQ("+++", Iterate(0, "abc"));
  EXPECT_EQ("++", Iterate(1, "ca"));
  EXPECT_EQ(0, book_.departures()) << "switching keys is none";
  EXPECT_EQ("none", Latest(2));
}

TEST_F(TraceTest, TheKeyThatCameNextIsExpectedToComeNext) {
  Iterate(0, "a");
  EXPECT_EQ(0u, book_.Successor(0)) << "itself, until another came";
  Iterate(1, "a");
  Iterate(0, "a");
  EXPECT_EQ(1u, book_.Successor(0));
  EXPECT_EQ(0u, book_.Successor(1));
}

TEST_F(TraceTest, AfterADepartureTheTraceIsFoundAgainFurtherOn) {
  Iterate(0, "abcdef");
  EXPECT_EQ("++-++", Iterate(0, "abdef")) << "c was left out";
  EXPECT_EQ(1, book_.departures());
}

TEST_F(TraceTest, AUnitThatIsNotExpectedAgainChangesNothing) {
  Iterate(0, "abcd");
  EXPECT_EQ("++-++", Iterate(0, "abxcd"));
}

TEST_F(TraceTest, AnotherTraceOfTheSameBeginningIsFollowed) {
  Iterate(0, "abcd");
  EXPECT_EQ("+---", Iterate(0, "axyz"));
  EXPECT_EQ("axyz", Latest(0));
  EXPECT_EQ("+-++", Iterate(0, "abcd")) << "known before, and not forgotten";
  EXPECT_EQ("+-++", Iterate(0, "axyz"));
  EXPECT_EQ("++++", Iterate(0, "axyz"));
}

TEST_F(TraceTest, AsManyTracesAreKeptAsAreSaid) {
  for (size_t i = 0; i <= TraceBook::kTracesPerKey; ++i)
    Iterate(0, std::string(1, static_cast<char>('b' + i)) + "xyz");
  const int64_t before = book_.departures();
  EXPECT_EQ("-+++", Iterate(0, "cxyz")) << "the oldest but one is known";
  EXPECT_EQ("--++", Iterate(0, "bxyz")) << "found by skipping ahead to x, not remembered";
  EXPECT_EQ(before + 3, book_.departures());
}

TEST_F(TraceTest, AnIterationThatAcquiredNothingTeachesNothing) {
  Iterate(0, "ab");
  Iterate(0, "");
  EXPECT_EQ("ab", Latest(0));
}

TEST_F(TraceTest, BeginEndsAnOpenIteration) {
  book_.Begin(0);
  book_.OnAcquire(Unit('a'));
  EXPECT_EQ("-", Iterate(1, "b"));
  EXPECT_EQ("a", Latest(0));
}

TEST_F(TraceTest, OutsideIterationsNothingIsRecordedOrExpected) {
  Iterate(0, "ab");
  EXPECT_FALSE(book_.open());
  EXPECT_FALSE(book_.OnAcquire(Unit('a')));
  book_.OnRelease(Unit('a'));
  EXPECT_EQ("ab", Latest(0));
  EXPECT_EQ(0, book_.departures());
  book_.Begin(0);
  EXPECT_TRUE(book_.known());
  EXPECT_EQ(0u, book_.position());
  book_.OnAcquire(Unit('a'));
  EXPECT_EQ(1u, book_.position());
}

TEST_F(TraceTest, OneMoreThanTheTraceHasIsADeparture) {
  Iterate(0, "ab");
  EXPECT_EQ("++-", Iterate(0, "abb"));
  EXPECT_EQ("++", Iterate(0, "ab").substr(0, 2));
}

using TraceDeathTest = TraceTest;
TEST_F(TraceDeathTest, KeysBelowTheirNumberOnly) {
  EXPECT_DEATH(book_.Begin(TraceBook::kKeys), "check failed");
}

}  // namespace
}  // namespace sluice
