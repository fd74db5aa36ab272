// What every part needs: torch's headers, names, limits, settings, and the one lock.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <dlfcn.h>
#include <torch/library.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <unordered_set>
#include <vector>

namespace simdev {

using at::Tensor;
using c10::Device;
using c10::DeviceIndex;
using c10::IValue;

constexpr auto kDeviceType = c10::DeviceType::PrivateUse1;
constexpr int kMaxDevices = 16;
constexpr int kHost = -1;  // stands where a device index stands
constexpr size_t kAllocationUnit = 512;
constexpr int kPooledStreams = 32;  // a 33rd new stream is the first one again, as on CUDA

// One value of each type for the whole process, never destroyed: Python frees tensors after static destructors ran.
template <class T>
T& immortal() {
  static T* value = new T;
  return *value;
}

enum class Races { kIgnore, kRecord, kRaise };

struct Settings {
  int device_count = 0;
  bool lazy = true;
  Races races = Races::kRaise;
  bool poison = true;
  bool dry = false;
  bool thread_clocks = false;
};
inline Settings& settings() { return immortal<Settings>(); }

inline std::string device_name(int device) {
  return device == kHost ? "pinned host" : c10::str(Device(kDeviceType, DeviceIndex(device)));
}

// Names that outlive whatever they were taken from, because the history of a block keeps them.
inline const std::string* intern(const std::string& name) {
  return &*immortal<std::unordered_set<std::string>>().insert(name).first;
}

// The one lock of the simulation, held while an operator runs: simulated devices work one after another.
//
// The count of a tensor may be changed under this lock, and torch then may take Python's global interpreter lock
// (the last reference to a tensor that Python has seen). So a thread that holds the interpreter must not wait for
// this lock while it does: it gives the interpreter away first. Python's functions are looked up at run time, because
// its headers are not there on every machine that has a compiler.
class Lock {
 public:
  Lock() {
    if (mutex().try_lock()) return;
    static const auto holds_interpreter = symbol<int (*)()>("PyGILState_Check");
    static const auto give_away = symbol<void* (*)()>("PyEval_SaveThread");
    static const auto take_back = symbol<void (*)(void*)>("PyEval_RestoreThread");
    if (holds_interpreter && holds_interpreter()) {
      void* thread = give_away();
      mutex().lock();
      take_back(thread);
    } else {
      mutex().lock();
    }
  }
  ~Lock() { mutex().unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  // Recursive, because freeing a tensor inside an operator comes back to the allocator.
  static std::recursive_mutex& mutex() { return immortal<std::recursive_mutex>(); }

  template <class Function>
  static Function symbol(const char* name) {
    return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  }
};

}  // namespace simdev
