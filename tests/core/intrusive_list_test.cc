#include "core/intrusive_list.h"

#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <random>
#include <utility>
#include <vector>

namespace sluice {
namespace {

class Element {
 public:
  int number = 0;

 private:
  friend class IntrusiveList<Element>;
  Element* next_ = nullptr;
};

template <size_t kSize>
std::array<Element, kSize> Numbered() {
  std::array<Element, kSize> elements;
  for (size_t i = 0; i < kSize; ++i) elements[i].number = static_cast<int>(i);
  return elements;
}

std::vector<int> Drain(IntrusiveList<Element>* list) {
  std::vector<int> numbers;
  while (!list->empty()) numbers.push_back(list->Pop()->number);
  return numbers;
}

TEST(IntrusiveListTest, GivesTheFirstPushedFirst) {
  auto elements = Numbered<4>();
  IntrusiveList<Element> list;
  EXPECT_TRUE(list.empty());
  for (Element& element : elements) list.Push(&element);
  EXPECT_FALSE(list.empty());
  EXPECT_EQ(Drain(&list), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_TRUE(list.empty());
}

TEST(IntrusiveListTest, PushFrontGoesBeforeAll) {
  auto elements = Numbered<3>();
  IntrusiveList<Element> list;
  list.PushFront(&elements[1]);
  list.Push(&elements[2]);
  list.PushFront(&elements[0]);
  EXPECT_EQ(Drain(&list), (std::vector<int>{0, 1, 2}));
}

TEST(IntrusiveListTest, AnElementThatWasTakenMayBePushedAgain) {
  auto elements = Numbered<2>();
  IntrusiveList<Element> list;
  list.Push(&elements[0]);
  list.Push(&elements[1]);
  list.Push(list.Pop());
  EXPECT_EQ(Drain(&list), (std::vector<int>{1, 0}));
  list.Push(&elements[1]);
  list.Push(list.Pop());
  EXPECT_EQ(Drain(&list), (std::vector<int>{1}));
}

TEST(IntrusiveListTest, MovesLeaveNothingBehind) {
  auto elements = Numbered<3>();
  IntrusiveList<Element> from;
  from.Push(&elements[0]);
  from.Push(&elements[1]);
  IntrusiveList<Element> to = std::exchange(from, {});
  EXPECT_TRUE(from.empty());
  from.Push(&elements[2]);
  EXPECT_EQ(Drain(&to), (std::vector<int>{0, 1}));
  to = std::move(from);
  EXPECT_EQ(Drain(&to), (std::vector<int>{2}));
}

TEST(IntrusiveListTest, DoesWhatADequeDoes) {
  auto elements = Numbered<8>();
  std::vector<Element*> unlisted;
  for (Element& element : elements) unlisted.push_back(&element);
  IntrusiveList<Element> list;
  std::deque<Element*> model;
  std::mt19937 random(11);
  for (int i = 0; i < 5000; ++i) {
    ASSERT_EQ(list.empty(), model.empty());
    const bool pop = unlisted.empty() || (!model.empty() && random() % 2 == 0);
    if (pop) {
      Element* element = list.Pop();
      ASSERT_EQ(element, model.front());
      model.pop_front();
      unlisted.push_back(element);
      continue;
    }
    std::swap(unlisted[random() % unlisted.size()], unlisted.back());
    Element* element = unlisted.back();
    unlisted.pop_back();
    if (random() % 3 == 0) {
      list.PushFront(element);
      model.push_front(element);
    } else {
      list.Push(element);
      model.push_back(element);
    }
  }
}

}  // namespace
}  // namespace sluice
