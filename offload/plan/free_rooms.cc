#include "offload/plan/free_rooms.h"

#include <algorithm>

#include "core/status.h"

namespace sluice {

namespace {
// Any order of the places will do that has nothing to do with that of the offsets.
uint32_t WeightOf(SegmentList::Place place) {
  uint32_t x = place * 0x9E3779B1u;
  x = (x ^ (x >> 15)) * 0x85EBCA77u;
  return x ^ (x >> 13);
}
}  // namespace

void FreeRooms::Refresh(Place place) {
  Node& node = nodes_[place];
  node.largest = node.size;
  if (node.left != kNone) node.largest = std::max(node.largest, nodes_[node.left].largest);
  if (node.right != kNone) node.largest = std::max(node.largest, nodes_[node.right].largest);
}

FreeRooms::Halves FreeRooms::Split(Place tree, Bytes offset) {
  if (tree == kNone) return {kNone, kNone};
  Node& node = nodes_[tree];
  Halves halves{};
  if (node.offset < offset) {
    const Halves below = Split(node.right, offset);
    node.right = below.left;
    halves = {tree, below.right};
  } else {
    const Halves below = Split(node.left, offset);
    node.left = below.right;
    halves = {below.left, tree};
  }
  Refresh(tree);
  return halves;
}

FreeRooms::Place FreeRooms::Join(Place left, Place right) {
  if (left == kNone) return right;
  if (right == kNone) return left;
  if (nodes_[left].weight > nodes_[right].weight) {
    nodes_[left].right = Join(nodes_[left].right, right);
    Refresh(left);
    return left;
  }
  nodes_[right].left = Join(left, nodes_[right].left);
  Refresh(right);
  return right;
}

void FreeRooms::Add(Place place, Bytes offset, Bytes size) {
  if (nodes_.size() <= place) nodes_.resize(place + 1);
  nodes_[place] = {.offset = offset, .size = size, .largest = size, .weight = WeightOf(place)};
  const Halves halves = Split(root_, offset);
  root_ = Join(Join(halves.left, place), halves.right);
}

void FreeRooms::Remove(Place place) {
  const Bytes offset = nodes_[place].offset;
  const Halves halves = Split(root_, offset);
  const Halves after = Split(halves.right, offset + Bytes(1));
  SLUICE_CHECK(after.left == place);
  root_ = Join(halves.left, after.right);
}

FreeRooms::Place FreeRooms::First(Bytes bytes) const {
  if (root_ == kNone || nodes_[root_].largest < bytes) return kNone;
  Place place = root_;
  for (;;) {
    const Node& node = nodes_[place];
    if (node.left != kNone && nodes_[node.left].largest >= bytes) {
      place = node.left;
    } else if (node.size >= bytes) {
      return place;
    } else {
      place = node.right;
    }
  }
}

}  // namespace sluice
