// Random generators, pinned memory and resizing: what torch asks a backend through its hooks.
#pragma once

#include "guard.hpp"

namespace simdev {

// Wraps a generator of the CPU, so that a seed gives the numbers that it gives on the CPU.
struct Generator final : c10::GeneratorImpl {
  explicit Generator(DeviceIndex device)
      : GeneratorImpl(torch_device(device), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        cpu(at::detail::createCPUGenerator()) {}

  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }

  at::Generator cpu;

 private:
  Generator* clone_impl() const override {
    auto* copy = new Generator(device().index());
    copy->cpu = cpu.clone();
    return copy;
  }
};

struct DefaultGenerators {
  std::vector<at::Generator> by_device;
  DefaultGenerators() {
    for (int i = 0; i < kMaxDevices; i++) by_device.push_back(at::make_generator<Generator>(DeviceIndex(i)));
  }
};
inline at::Generator& default_generator(int device) {
  return immortal<DefaultGenerators>().by_device[device < 0 ? current_device : device];
}
inline at::Generator& cpu_generator(const at::Generator& g) {
  return static_cast<Generator*>(g.unsafeGetGeneratorImpl())->cpu;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return settings().device_count > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return DeviceIndex(settings().device_count); }
  void setCurrentDevice(DeviceIndex device) const override { Guard().setDevice(torch_device(device)); }
  DeviceIndex getCurrentDevice() const override { return DeviceIndex(current_device); }
  DeviceIndex exchangeDevice(DeviceIndex device) const override {
    return Guard().exchangeDevice(torch_device(device)).index();
  }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override { return exchangeDevice(device); }

  const at::Generator& getDefaultGenerator(DeviceIndex device) const override { return default_generator(device); }
  at::Generator getNewGenerator(DeviceIndex device) const override {
    return at::make_generator<Generator>(device < 0 ? DeviceIndex(current_device) : device);
  }

  bool isPinnedPtr(const void* address) const override {
    Lock lock;
    return pinned_block(address) != nullptr;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &immortal<PinnedAllocator>(); }

  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    Lock lock;
    const int device = storage.device().index();
    Stream& s = current_stream(device);
    static const std::string* name = intern("resize of a storage");
    const Operation op{s, issue(s), name};
    c10::DataPtr data = allocate(device, size);
    if (const size_t kept = std::min(size, storage.nbytes())) {
      const ByteRange range{0, int64_t(kept)};
      if (Block* old = block_of(storage.data_ptr())) touch(*old, range, op, false);
      if (Block* fresh = block_of(data)) touch(*fresh, range, op, true);
      drain(s);
      if (!settings().dry) std::memcpy(data.get(), storage.data(), kept);
    }
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(data));
    storage.unsafeGetStorageImpl()->set_nbytes(size);
  }
};

}  // namespace simdev
