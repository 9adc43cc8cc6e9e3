#include "offload/plan/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
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
    const IndexedTrace* trace = book_.Latest(key);
    std::string letters;
    if (trace == nullptr) return "none";
    for (const UnitIndex unit : trace->acquisitions())
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
  EXPECT_THAT(book_.Latest(0)->steps(),
              ElementsAre(TraceStep{Unit('a'), true}, TraceStep{Unit('b'), true},
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

TEST_F(TraceTest, AnExtraAcquisitionOfWhatComesAgainMuchLaterIsOneDeparture) {
  Iterate(0, "abcdefghijklmnopqrstuvwxyzzyxwvutsrqponmlkjihgfedcba");
  EXPECT_EQ("+-+++++++++++++++++++++++++++++++++++++++++++++++++++",
            Iterate(0, "aabcdefghijklmnopqrstuvwxyzzyxwvutsrqponmlkjihgfedcba"));
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

// Units in any order.
std::vector<uint32_t> AnyOrder() {
  const auto units = *rc::gen::inRange<uint32_t>(8, 40);
  const auto length = *rc::gen::inRange<size_t>(units, 200);
  std::vector<uint32_t> trace;
  for (size_t i = 0; i < length; ++i) trace.push_back(*rc::gen::inRange<uint32_t>(0, units));
  return trace;
}

// A model's iteration: through the units and back, some of them twice, once or several times.
std::vector<uint32_t> AnyIteration() {
  const auto units = *rc::gen::inRange<uint32_t>(2, 40);
  const bool recomputes = *rc::gen::inRange(0, 2) == 0;
  const auto rounds = *rc::gen::inRange(1, 4);
  std::vector<uint32_t> trace;
  for (int round = 0; round < rounds; ++round) {
    for (uint32_t u = 0; u < units; ++u) trace.push_back(u);
    for (uint32_t u = units; u > 0; --u) {
      trace.push_back(u - 1);
      if (recomputes && u % 3 == 0) trace.push_back(u);
    }
  }
  return trace;
}

// One place changed: an acquisition extra, some left out, two swapped, or some repeated.
void Edit(std::vector<uint32_t>* trace) {
  const auto size = static_cast<ptrdiff_t>(trace->size());
  const auto at = trace->begin() + *rc::gen::inRange<ptrdiff_t>(0, size);
  const auto some = std::min(*rc::gen::inRange<ptrdiff_t>(1, 6), trace->end() - at);
  switch (*rc::gen::inRange(0, 4)) {
    case 0:
      trace->insert(at, *rc::gen::inRange<uint32_t>(0, 45));
      break;
    case 1:
      if (some < size) trace->erase(at, at + some);
      break;
    case 2:
      if (some > 1) std::iter_swap(at, at + 1);
      break;
    default: {
      const std::vector<uint32_t> again(at, at + some);
      trace->insert(at, again.begin(), again.end());
    }
  }
}

// How often an iteration of `edits` changes departs from `trace`.
int64_t DeparturesAfter(const std::vector<uint32_t>& trace, int edits) {
  std::vector<uint32_t> edited = trace;
  for (int i = 0; i < edits; ++i) Edit(&edited);
  TraceBook book;
  for (const auto& units : {trace, edited}) {
    book.Begin(0);
    for (const uint32_t unit : units) book.OnAcquire(UnitIndex(unit));
  }
  return book.departures();
}

RC_GTEST_PROP(TraceEditsTest, EachEditCostsAFewDeparturesWhereverItIs, ()) {
  const auto edits = *rc::gen::inRange(1, 6);
  RC_ASSERT(DeparturesAfter(AnyIteration(), edits) <= 4 * edits + 1);
}

// Where any unit may follow any, more places explain what came.
RC_GTEST_PROP(TraceEditsTest, SoItDoesWhereUnitsComeInAnyOrder, ()) {
  const auto edits = *rc::gen::inRange(1, 6);
  RC_ASSERT(DeparturesAfter(AnyOrder(), edits) <= 8 * edits);
}

// What is said of a trace is what its steps say.
RC_GTEST_PROP(IndexedTraceTest, AnswersAsItsStepsWould, ()) {
  Trace steps;
  for (const uint32_t unit : AnyOrder())
    steps.push_back({UnitIndex(unit), *rc::gen::inRange(0, 3) > 0});
  const IndexedTrace trace(steps);
  std::vector<UnitIndex> acquired;
  for (size_t i = 0; i < steps.size(); ++i) {
    if (!steps[i].acquire) continue;
    acquired.push_back(steps[i].unit);
    RC_ASSERT(trace.StepAfter(acquired.size()) == i + 1);
  }
  RC_ASSERT(trace.acquisitions() == acquired);
  for (uint32_t unit = 0; unit < 42; ++unit) {
    std::vector<size_t> uses;
    for (size_t i = 0; i < acquired.size(); ++i) {
      if (acquired[i] == UnitIndex(unit)) uses.push_back(i);
    }
    RC_ASSERT(std::ranges::equal(trace.Uses(UnitIndex(unit)), uses));
  }
}

}  // namespace
}  // namespace sluice
