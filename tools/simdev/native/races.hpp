// Who touched which bytes of a block, and whether something orders two touches of which one is a write.
#pragma once

#include "streams.hpp"

namespace simdev {

// One operation on one stream: the `tick` of `stream` that its accesses carry.
struct Operation {
  Stream& stream;
  uint64_t tick;
  const std::string* name;
};

// Bytes [begin, end) of a block. A tensor with gaps counts with all that lies between its first and last byte.
struct ByteRange {
  int64_t begin, end;
  bool overlaps(const ByteRange& o) const { return begin < o.end && o.begin < end; }
  bool contains(const ByteRange& o) const { return begin <= o.begin && o.end <= end; }
};

struct Access {
  ByteRange range;
  size_t stream;
  uint64_t tick;
  bool write;
  const std::string* name;

  bool before(const VectorClock& clock) const { return clock.at(stream) >= tick; }
  bool known_to_host() const { return host().knows(stream, tick); }
  std::string describe() const {
    return c10::str(*name, " on ", table().by_number[stream]->name(), write ? " (write)" : " (read)");
  }
};

struct Violations {
  std::vector<std::string> sentences;
};
inline std::vector<std::string>& violations() { return immortal<Violations>().sentences; }

// The accesses of one block that a later one may still conflict with.
class History {
 public:
  // Check an access against the earlier ones, then keep it. `block` names the block in a report.
  void add(const Operation& op, ByteRange range, bool write, const std::function<std::string()>& block) {
    for (const Access& a : accesses_) {
      if (a.stream == op.stream.number || !conflict(a, range, write) || a.before(op.stream.clock)) continue;
      violations().push_back(c10::str(*op.name, " on ", op.stream.name(), write ? " writes" : " reads", " bytes [",
                                      range.begin, ", ", range.end, ") of ", block(), ", and nothing orders it after ",
                                      a.describe(), "; let the stream wait for an event recorded after that"));
      TORCH_CHECK(settings().races != Races::kRaise, "simdev race: ", violations().back());
    }
    // Whoever is ordered after this access is ordered after those that it covers and follows: they need no keeping.
    std::erase_if(accesses_, [&](const Access& a) {
      return range.contains(a.range) && (write || (!a.write && a.stream == op.stream.number));
    });
    accesses_.push_back({range, op.stream.number, op.tick, write, op.name});
  }

  // The first access that is not known to be over, neither by `clock` nor by the host, on a stream that is not excused.
  const Access* unfinished(const VectorClock& clock, const std::set<size_t>& excused) const {
    for (const Access& a : accesses_)
      if (!a.before(clock) && !a.known_to_host() && !excused.count(a.stream)) return &a;
    return nullptr;
  }

  // Report every access that the host, which touches these bytes now, has not waited for; return how many.
  int check_host(ByteRange range, bool write, const std::string& what) const {
    int found = 0;
    for (const Access& a : accesses_) {
      if (!conflict(a, range, write) || a.known_to_host()) continue;
      violations().push_back(c10::str("the host (", what, write ? ") writes" : ") reads", " pinned bytes [",
                                      range.begin, ", ", range.end, "), and nothing orders it after ", a.describe(),
                                      "; let the host wait for an event recorded after that"));
      found++;
    }
    return found;
  }

 private:
  static bool conflict(const Access& a, const ByteRange& range, bool write) {
    return (a.write || write) && a.range.overlaps(range);
  }

  std::vector<Access> accesses_;
};

}  // namespace simdev
