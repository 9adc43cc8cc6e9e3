// tests/offload/failing_new.h
//
// For a program whose every `new` may fail, thread by thread: failing_new.cc replaces them.

#ifndef SLUICE_TESTS_OFFLOAD_FAILING_NEW_H_
#define SLUICE_TESTS_OFFLOAD_FAILING_NEW_H_

#include <cstdint>

namespace sluice::testing {

enum class Failing { kOnce, kFromThenOn };

inline thread_local int64_t news_until_failure = -1;  // below 0: none fails
inline thread_local bool news_go_on_failing = false;
inline thread_local int64_t news_failed = 0;

inline bool NextNewFails() {
  if (news_until_failure < 0) return false;
  if (news_until_failure > 0) {
    --news_until_failure;
    return false;
  }
  if (!news_go_on_failing) news_until_failure = -1;
  ++news_failed;
  return true;
}

// While it lives, the `nth` (from 0) of this thread fails, or all from it on.
class FailingNew {
 public:
  FailingNew(int64_t nth, Failing failing) {
    news_failed = 0;
    news_go_on_failing = failing == Failing::kFromThenOn;
    news_until_failure = nth;
  }
  ~FailingNew() { Stop(); }
  FailingNew(const FailingNew&) = delete;
  FailingNew& operator=(const FailingNew&) = delete;
  static void Stop() { news_until_failure = -1; }  // from here on none fails
  bool happened() const { return news_failed > 0; }
};

}  // namespace sluice::testing

#endif  // SLUICE_TESTS_OFFLOAD_FAILING_NEW_H_
