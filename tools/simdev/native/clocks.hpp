// Vector clocks: for each stream the number of its last operation that surely happened before.
//
// They are used instead of watching values, because a race that happens to read the right bytes is still a race, and
// because the order that the program guarantees, not the one that this run took, is what a real device keeps.
// (Lamport 1978; Fidge 1988; Mattern 1989.)
#pragma once

#include "common.hpp"

namespace simdev {

class VectorClock {
 public:
  uint64_t at(size_t stream) const { return stream < ticks_.size() ? ticks_[stream] : 0; }

  uint64_t advance(size_t stream) {
    if (stream >= ticks_.size()) ticks_.resize(stream + 1);
    return ++ticks_[stream];
  }

  // Whatever happened before `other` has now happened before this, too.
  void join(const VectorClock& other) {
    if (other.ticks_.size() > ticks_.size()) ticks_.resize(other.ticks_.size());
    for (size_t i = 0; i < other.ticks_.size(); i++) ticks_[i] = std::max(ticks_[i], other.ticks_[i]);
  }

 private:
  std::vector<uint64_t> ticks_;
};

}  // namespace simdev
