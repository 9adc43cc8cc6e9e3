#include "core/work_queue.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace sluice {
namespace {

class Element {
 public:
  std::atomic<int> taken{0};

 private:
  friend class IntrusiveList<Element>;
  Element* next_ = nullptr;
};

TEST(WorkQueueTest, GivesWhatWasPushedInOrderAlsoAfterStop) {
  std::vector<Element> elements(3);
  WorkQueue<Element> queue;
  for (Element& element : elements) queue.Push(&element);
  EXPECT_EQ(queue.Pop(), &elements[0]);
  queue.Stop();
  EXPECT_EQ(queue.Pop(), &elements[1]);
  EXPECT_EQ(queue.Pop(), &elements[2]);
  EXPECT_EQ(queue.Pop(), nullptr);
  EXPECT_EQ(queue.Pop(), nullptr);
}

TEST(WorkQueueTest, EachElementGoesToOneOfThoseWhoWait) {
  std::vector<Element> elements(2000);
  WorkQueue<Element> queue;
  std::vector<std::thread> takers;
  for (int i = 0; i < 3; ++i) {
    takers.emplace_back([&queue] {
      while (Element* element = queue.Pop()) ++element->taken;
    });
  }
  for (Element& element : elements) queue.Push(&element);
  queue.Stop();
  for (std::thread& taker : takers) taker.join();
  for (const Element& element : elements) EXPECT_EQ(element.taken, 1);
}

}  // namespace
}  // namespace sluice
