// simdev: N simulated accelerators for torch PrivateUse1, hosted on the CPU.
// Device memory is ordinary host memory with per-device accounting; kernels are the CPU kernels run on
// zero-copy aliases, after a CUDA-like device check; copies are queued per stream and executed as LATE as the
// stream/event order allows; every access is checked against vector clocks (happens-before).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/Resize.h>
#include <ATen/native/transformers/attention.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <dlfcn.h>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>

namespace simdev {
using c10::Device; using c10::DeviceIndex; using c10::DeviceType; using c10::IValue; using at::Tensor;
constexpr auto PU1 = c10::DeviceType::PrivateUse1;
constexpr int MAXDEV = 16;
constexpr int HOST = -1;
constexpr size_t ROUND = 512;

std::recursive_mutex& mu() { static auto* m = new std::recursive_mutex; return *m; }
// A thread that holds the GIL never blocks on mu(): refcounting a Tensor inside the lock may need the GIL (torch >= 2.10).
struct Lock {
  explicit Lock(std::recursive_mutex& m) : m_(m) {
    if (m_.try_lock()) return;
    using Check = int (*)(); using Save = void* (*)(); using Restore = void (*)(void*);
    static auto check = (Check)dlsym(RTLD_DEFAULT, "PyGILState_Check"); static auto save = (Save)dlsym(RTLD_DEFAULT, "PyEval_SaveThread");
    static auto restore = (Restore)dlsym(RTLD_DEFAULT, "PyEval_RestoreThread");
    if (check && check()) { void* ts = save(); m_.lock(); restore(ts); } else m_.lock();
  }
  ~Lock() { m_.unlock(); }
  std::recursive_mutex& m_;
};

// ------------------------------------------------------------------ configuration
struct Config { int ndev = 4; int lazy = 1; int race = 2; int poison = 1; int dry = 0; } cfg;  // race: 0 off 1 record 2 raise; dry: shapes and bytes only

// ------------------------------------------------------------------ vector clocks
using VC = std::map<int, uint64_t>;                       // stream key -> tick
static void join(VC& a, const VC& b) { for (auto& [k, v] : b) { auto& x = a[k]; if (v > x) x = v; } }
static int skey(int dev, int64_t id) { return dev * 100000 + int(id); }
static std::string sname(int key) { return c10::str(Device(PU1, key / 100000), "/stream", key % 100000); }

struct Stream_ { int key; uint64_t issued = 0, done = 0; VC vc; std::deque<std::function<void()>> q; };
static std::map<int, Stream_>& streams() { static auto* s = new std::map<int, Stream_>; return *s; }
static Stream_& stream(int key) { auto& s = streams()[key]; s.key = key; return s; }
static VC host_vc;
static std::map<int, int64_t> next_stream_id;

thread_local int cur_dev = 0;
thread_local std::map<int, int64_t> cur_stream;
static int cur_key(int dev) { auto it = cur_stream.find(dev); return skey(dev, it == cur_stream.end() ? 0 : it->second); }

static void drain_to(int key, uint64_t pos) {
  auto& s = stream(key); if (s.done >= pos) return;
  c10::impl::ExcludeDispatchKeyGuard g(c10::autograd_dispatch_keyset | c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::PythonTLSSnapshot, c10::DispatchKey::ADInplaceOrView}));
  while (s.done < pos && !s.q.empty()) { auto f = std::move(s.q.front()); s.q.pop_front(); f(); s.done++; }
}
static void drain(int key) { drain_to(key, stream(key).issued); }
static void host_sync(int key) { drain(key); join(host_vc, stream(key).vc); }
static void push(int key, std::function<void()> f) {
  auto& s = stream(key); s.issued++; s.q.push_back(std::move(f)); if (!cfg.lazy) drain(key);
}
// stream `a` waits for the present state of stream `b`
static void stream_wait(int a, int b) {
  if (a == b) return;
  join(stream(a).vc, stream(b).vc);
  push(a, [b, pos = stream(b).issued] { drain_to(b, pos); });
}

// ------------------------------------------------------------------ memory blocks
struct Access { int64_t lo, hi; int key; uint64_t tick; bool write; std::string op; };
struct Block {
  void* ptr; size_t req, bytes; int dev; int alloc_key; c10::Storage keep; bool malloced;
  std::vector<Access> acc; std::set<int> recorded; std::vector<std::pair<int, uint64_t>> pending;
};
struct DevStat { size_t cap = size_t(8) << 30, used = 0, peak = 0, req = 0; int64_t nalloc = 0, nfree = 0, noom = 0; uint64_t total = 0, freed = 0; };
static DevStat dstat[MAXDEV];
static std::map<uintptr_t, Block*>& pinned() { static auto* m = new std::map<uintptr_t, Block*>; return *m; }
static size_t pinned_bytes = 0, pinned_peak = 0;
static std::vector<std::string>& violations() { static auto* v = new std::vector<std::string>; return *v; }
static std::atomic<int64_t> host_syncs{0}, kernels{0};

struct Link { uint64_t n = 0, bytes = 0; };
static std::map<std::tuple<int, int, int>, Link> links;   // (src, dst, kind) kind: 0 sync 1 async 2 async-from-pageable 3 d2d
static std::map<std::string, uint64_t> opcount;
static bool count_ops = false;

static void violate(std::string msg) {
  violations().push_back(msg);
  TORCH_CHECK(cfg.race < 2, "simdev race: ", msg);
}

static void touch(Block* b, int64_t lo, int64_t hi, int key, uint64_t tick, bool write, const std::string& op) {
  if (!cfg.race || !b || lo >= hi) return;
  auto& vc = stream(key).vc;
  for (auto& a : b->acc) {
    if (a.hi <= lo || a.lo >= hi || !(a.write || write) || a.key == key) continue;
    auto it = vc.find(a.key);
    if (it == vc.end() || it->second < a.tick)
      violate(c10::str(op, " on ", sname(key), write ? " writes " : " reads ", "bytes [", lo, ",", hi, ") of a ", b->bytes,
                       "-byte block on ", b->dev == HOST ? std::string("pinned host") : c10::str(Device(PU1, b->dev)),
                       " not ordered after ", a.op, " on ", sname(a.key), a.write ? " (write)" : " (read)"));
  }
  // prune what this access supersedes (same range or inside it, already ordered before it)
  std::vector<Access> keep;
  for (auto& a : b->acc) {
    bool inside = a.lo >= lo && a.hi <= hi;
    if (inside && (write || (!a.write && a.key == key))) continue;
    keep.push_back(std::move(a));
  }
  keep.push_back({lo, hi, key, tick, write, op});
  b->acc = std::move(keep);
}

static void release(Block* b) {
  Lock l(mu());
  if (cfg.race && b->dev != HOST) {
    auto& vc = stream(b->alloc_key).vc;
    for (auto& a : b->acc) {
      if (a.key == b->alloc_key || b->recorded.count(a.key)) continue;
      auto it = vc.find(a.key); auto h = host_vc.find(a.key);
      bool ok = (it != vc.end() && it->second >= a.tick) || (h != host_vc.end() && h->second >= a.tick);
      if (!ok)
        violations().push_back(c10::str("block of ", b->bytes, " bytes allocated on ", sname(b->alloc_key), " freed while ", a.op, " on ",
                                        sname(a.key), " may still use it (no record_stream, no wait)"));
    }
  }
  auto pend = std::move(b->pending);
  for (auto& [k, pos] : pend) drain_to(k, pos);
  if (b->dev == HOST) { pinned().erase(uintptr_t(b->ptr)); pinned_bytes -= b->bytes; }
  else { auto& d = dstat[b->dev]; d.used -= b->bytes; d.req -= b->req; d.nfree++; d.freed += b->bytes; }
  if (b->malloced) std::free(b->ptr);
  delete b;
}
static void deleter(void* ctx) { if (ctx) release(static_cast<Block*>(ctx)); }

static size_t rnd(size_t n) { return (n + ROUND - 1) / ROUND * ROUND; }
static void reserve(int dev, size_t n, size_t req) {
  auto& d = dstat[dev];
  if (d.used + n > d.cap) {
    d.noom++;
    TORCH_CHECK_WITH(OutOfMemoryError, false, "simdev out of memory. Tried to allocate ", n, " bytes. Device ", Device(PU1, dev), " has a total capacity of ",
                     d.cap, " bytes of which ", d.cap - d.used, " bytes is free.");
  }
  d.used += n; d.req += req; d.total += n; d.nalloc++; if (d.used > d.peak) d.peak = d.used;
}
static c10::DataPtr dev_alloc(int dev, size_t n) {
  Lock l(mu());
  Device dv(PU1, dev);
  if (n == 0) return {nullptr, nullptr, &deleter, dv};
  size_t r = rnd(n);
  reserve(dev, r, n);
  void* p = nullptr;
  if (posix_memalign(&p, 64, r)) { dstat[dev].used -= r; TORCH_CHECK(false, "simdev: host memory exhausted"); }
  if (cfg.poison && !cfg.dry) std::memset(p, 0xFF, r);                // NaN for every float type
  auto* b = new Block{p, n, r, dev, cur_key(dev), {}, true, {}, {}, {}};
  return {p, b, &deleter, dv};
}
static Block* block_of(const c10::DataPtr& d) { return d.get_deleter() == &deleter ? static_cast<Block*>(d.get_context()) : nullptr; }
static Block* block_of(const Tensor& t) {
  if (t.is_privateuseone()) return block_of(t.storage().data_ptr());
  auto& m = pinned(); if (m.empty() || !t.has_storage()) return nullptr;
  auto it = m.upper_bound(uintptr_t(t.storage().data())); if (it == m.begin()) return nullptr; --it;
  return uintptr_t(t.storage().data()) < it->first + it->second->bytes ? it->second : nullptr;
}
static std::pair<int64_t, int64_t> range_of(const Tensor& t) {
  if (t.numel() == 0) return {0, 0};
  int64_t ext = 0; for (int64_t i = 0; i < t.dim(); i++) ext += (t.size(i) - 1) * t.stride(i);
  int64_t lo = t.storage_offset() * t.element_size();
  if (!t.is_privateuseone()) if (auto* b = block_of(t)) lo += (char*)t.storage().data() - (char*)b->ptr;
  return {lo, lo + (ext + 1) * int64_t(t.element_size())};
}
static void touch_t(const Tensor& t, int key, uint64_t tick, bool write, const std::string& op) {
  if (auto* b = block_of(t)) { auto [lo, hi] = range_of(t); touch(b, lo, hi, key, tick, write, op); }
}
static uint64_t launch(int key) { auto& s = stream(key); join(s.vc, host_vc); return ++s.vc[key]; }

// ------------------------------------------------------------------ allocators
struct Alloc final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t n) override { return dev_alloc(cur_dev, n); }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* d, const void* s, size_t n) const override { Lock l(mu()); std::memcpy(d, s, n); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& p, c10::Stream s) override {
    Lock l(mu()); if (auto* b = block_of(p)) b->recorded.insert(skey(s.device_index(), s.id()));
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(DeviceIndex i) override {
    Lock l(mu()); c10::CachingDeviceAllocator::DeviceStats s; auto& d = dstat[i];
    auto set = [&](auto& st, int64_t cur, int64_t peak) { st[0].current = cur; st[0].peak = peak; st[0].allocated = d.total; st[0].freed = d.freed; };
    set(s.allocated_bytes, d.used, d.peak); set(s.active_bytes, d.used, d.peak); set(s.reserved_bytes, d.used, d.peak);
    set(s.requested_bytes, d.req, d.req); s.num_ooms = d.noom; s.num_device_alloc = d.nalloc; s.num_device_free = d.nfree; return s;
  }
  void resetAccumulatedStats(DeviceIndex i) override { dstat[i].total = dstat[i].freed = 0; }
  void resetPeakStats(DeviceIndex i) override { dstat[i].peak = dstat[i].used; }
  std::pair<size_t, size_t> getMemoryInfo(DeviceIndex i) override { auto& d = dstat[i]; return {d.cap - d.used, d.cap}; }
};
static Alloc g_alloc;

struct PinAlloc final : at::HostAllocator {
  c10::DataPtr allocate(size_t n) override {
    Lock l(mu()); if (n == 0) return {nullptr, nullptr, &deleter, c10::Device(c10::kCPU)};
    size_t r = rnd(n); void* p = nullptr; TORCH_CHECK(!posix_memalign(&p, 4096, r), "simdev: cannot pin"); 
    auto* b = new Block{p, n, r, HOST, 0, {}, true, {}, {}, {}}; pinned()[uintptr_t(p)] = b; pinned_bytes += r; pinned_peak = std::max(pinned_peak, pinned_bytes);
    return {p, b, &deleter, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* d, const void* s, size_t n) const override { std::memcpy(d, s, n); }
  bool record_event(void*, void*, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};
static PinAlloc g_pin;

// ------------------------------------------------------------------ guard: devices, streams, events
struct Ev { int key = -1; uint64_t pos = 0; VC vc; uint64_t t = 0; };
static std::atomic<uint64_t> ev_clock{0};
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static int k(const c10::Stream& s) { return skey(s.device_index(), s.id()); }
  DeviceType type() const override { return PU1; }
  Device exchangeDevice(Device d) const override { Device o(PU1, cur_dev); setDevice(d); return o; }
  Device getDevice() const override { return {PU1, DeviceIndex(cur_dev)}; }
  void setDevice(Device d) const override {
    TORCH_CHECK(d.index() >= 0 && d.index() < cfg.ndev, "simdev: invalid device ordinal ", int(d.index()), ", there are ", cfg.ndev); cur_dev = d.index(); }
  void uncheckedSetDevice(Device d) const noexcept override { if (d.index() >= 0) cur_dev = d.index(); }
  c10::Stream getStream(Device d) const override { auto it = cur_stream.find(d.index()); return c10::Stream(c10::Stream::UNSAFE, d, it == cur_stream.end() ? 0 : it->second); }
  c10::Stream getDefaultStream(Device d) const override { return c10::Stream(c10::Stream::UNSAFE, d, 0); }
  c10::Stream getNewStream(Device d, int) const override { Lock l(mu()); return c10::Stream(c10::Stream::UNSAFE, d, 1 + (next_stream_id[d.index()]++ % 32)); }   // a pool of 32, as CUDA
  c10::Stream getStreamFromGlobalPool(Device d, bool) const override { return getNewStream(d, 0); }
  c10::Stream exchangeStream(c10::Stream s) const override { auto o = getStream(s.device()); cur_stream[s.device_index()] = s.id(); return o; }
  DeviceIndex deviceCount() const noexcept override { return cfg.ndev; }
  void destroyEvent(void* e, const DeviceIndex) const noexcept override { delete static_cast<Ev*>(e); }
  void record(void** e, const c10::Stream& s, const DeviceIndex, const c10::EventFlag) const override {
    Lock l(mu()); if (!*e) *e = new Ev; auto* ev = static_cast<Ev*>(*e); auto& st = stream(k(s));
    launch(k(s)); ev->key = k(s); ev->pos = st.issued; ev->vc = st.vc; ev->t = ++ev_clock;
  }
  void block(void* e, const c10::Stream& s) const override {
    Lock l(mu()); auto* ev = static_cast<Ev*>(e); if (!ev || ev->key < 0 || ev->key == k(s)) return;
    join(stream(k(s)).vc, ev->vc); push(k(s), [key = ev->key, pos = ev->pos] { drain_to(key, pos); });
  }
  bool queryEvent(void* e) const override {                // every query lets one queued task finish, then answers
    Lock l(mu()); auto* ev = static_cast<Ev*>(e); if (!ev || ev->key < 0) return true; auto& st = stream(ev->key);
    if (st.done < ev->pos) { drain_to(ev->key, st.done + 1); return false; }
    join(host_vc, ev->vc); return true;
  }
  bool queryStream(const c10::Stream& s) const override {
    Lock l(mu()); auto& st = stream(k(s)); if (st.done < st.issued) { drain_to(k(s), st.done + 1); return false; }
    join(host_vc, st.vc); return true;
  }
  void synchronizeStream(const c10::Stream& s) const override { Lock l(mu()); host_syncs++; host_sync(k(s)); }
  void synchronizeEvent(void* e) const override {
    Lock l(mu()); auto* ev = static_cast<Ev*>(e); if (!ev || ev->key < 0) return; host_syncs++; drain_to(ev->key, ev->pos); join(host_vc, ev->vc); }
  void synchronizeDevice(const DeviceIndex i) const override {
    Lock l(mu()); host_syncs++; for (auto& [key, s] : streams()) if (key / 100000 == i) host_sync(key); }
  void recordDataPtrOnStream(const c10::DataPtr& p, const c10::Stream& s) const override { g_alloc.recordStream(p, s); }
  double elapsedTime(void* a, void* b, const DeviceIndex) const override { return double(static_cast<Ev*>(b)->t) - double(static_cast<Ev*>(a)->t); }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// ------------------------------------------------------------------ generators: a device generator wraps a CPU generator
struct Gen final : c10::GeneratorImpl {
  at::Generator cpu;
  Gen(DeviceIndex i) : GeneratorImpl(Device(PU1, i), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)), cpu(at::detail::createCPUGenerator()) {}
  void set_current_seed(uint64_t s) override { cpu.set_current_seed(s); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& s) override { cpu.unsafeGetGeneratorImpl()->set_state(s); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  Gen* clone_impl() const override { auto* g = new Gen(device().index()); g->cpu = cpu.clone(); return g; }
};
static at::Generator& default_gen(int i) {
  static auto* v = [] { auto* g = new std::vector<at::Generator>; for (int j = 0; j < MAXDEV; j++) g->push_back(at::make_generator<Gen>(DeviceIndex(j))); return g; }();
  return (*v)[i < 0 ? cur_dev : i];
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return cfg.ndev > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return cfg.ndev; }
  void setCurrentDevice(DeviceIndex d) const override { Guard().setDevice({PU1, d}); }
  DeviceIndex getCurrentDevice() const override { return cur_dev; }
  DeviceIndex exchangeDevice(DeviceIndex d) const override { auto o = cur_dev; setCurrentDevice(d); return o; }
  DeviceIndex maybeExchangeDevice(DeviceIndex d) const override { return exchangeDevice(d); }
  const at::Generator& getDefaultGenerator(DeviceIndex i) const override { return default_gen(i); }
  at::Generator getNewGenerator(DeviceIndex i) const override { return at::make_generator<Gen>(DeviceIndex(i < 0 ? cur_dev : i)); }
  bool isPinnedPtr(const void* p) const override {
    Lock l(mu()); auto& m = pinned(); auto it = m.upper_bound(uintptr_t(p)); if (it == m.begin()) return false; --it;
    return uintptr_t(p) < it->first + it->second->bytes;
  }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &g_pin; }
  void resizePrivateUse1Bytes(const c10::Storage& s, size_t n) const override {
    Lock l(mu()); int dev = s.device().index(); auto nd = dev_alloc(dev, n);
    for (auto& [key, st] : streams()) if (key / 100000 == dev) drain(key);
    if (s.nbytes() && n && !cfg.dry) std::memcpy(nd.get(), s.data(), std::min(n, s.nbytes()));
    s.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(nd)); s.unsafeGetStorageImpl()->set_nbytes(n);
  }
};
static Hooks g_hooks;

// ------------------------------------------------------------------ tensors
static Tensor dev_empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dt, std::optional<at::Layout> lay,
                                std::optional<Device> dv, std::optional<bool> pin) {
  auto d = c10::device_or_default(dv); int i = d.has_index() ? d.index() : cur_dev;
  TORCH_CHECK(c10::layout_or_default(lay) == c10::Layout::Strided && !c10::pinned_memory_or_default(pin), "simdev: only dense strided tensors; pinned memory is host memory");
  c10::DeviceGuard g(Device(PU1, i));
  return at::detail::empty_strided_generic(size, stride, &g_alloc, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dt));
}
static Tensor dev_empty(c10::IntArrayRef size, std::optional<at::ScalarType> dt, std::optional<at::Layout> lay, std::optional<Device> dv,
                        std::optional<bool> pin, std::optional<at::MemoryFormat> mf) {
  auto d = c10::device_or_default(dv); int i = d.has_index() ? d.index() : cur_dev;
  TORCH_CHECK(c10::layout_or_default(lay) == c10::Layout::Strided && !c10::pinned_memory_or_default(pin), "simdev: only dense strided tensors; pinned memory is host memory");
  c10::DeviceGuard g(Device(PU1, i));
  return at::detail::empty_generic(size, &g_alloc, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c10::dtype_or_default(dt), mf);
}

struct Aliaser {                                            // device tensor -> CPU tensor over the same bytes
  std::map<c10::StorageImpl*, c10::Storage> fwd;            // device storage -> cpu storage
  std::map<c10::StorageImpl*, c10::Storage> back;           // cpu storage -> device storage
  std::map<c10::TensorImpl*, Tensor> orig;                  // cpu alias -> device tensor
  bool meta = false;                                        // dry run: alias to a meta tensor instead
  Tensor to_cpu(const Tensor& t) {
    auto* si = t.storage().unsafeGetStorageImpl(); auto it = fwd.find(si);
    if (it == fwd.end()) {
      c10::Storage s(c10::Storage::use_byte_size_t{}, si->nbytes(), meta ? c10::DataPtr(nullptr, c10::Device(c10::kMeta)) : c10::DataPtr(si->mutable_data(), c10::Device(c10::kCPU)),
                     c10::GetAllocator(meta ? c10::kMeta : c10::kCPU), true);
      it = fwd.emplace(si, s).first; back.emplace(s.unsafeGetStorageImpl(), t.storage());
    }
    auto r = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(it->second), c10::DispatchKeySet(meta ? c10::DispatchKey::Meta : c10::DispatchKey::CPU), t.dtype());
    r.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
    if (t.unsafeGetTensorImpl()->is_wrapped_number()) r.unsafeGetTensorImpl()->set_wrapped_number(true);
    orig.emplace(r.unsafeGetTensorImpl(), t);
    return r;
  }
  Tensor view_on(const c10::Storage& s, const Tensor& c) {
    auto r = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(s), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), c.dtype());
    r.unsafeGetTensorImpl()->set_sizes_and_strides(c.sizes(), c.strides(), c.storage_offset());
    return r;
  }
  Tensor to_dev(const Tensor& c, int dev, int key, uint64_t tick, const std::string& op) {   // adopt a CPU result as device memory
    if (!c.defined()) return c;
    auto o = orig.find(c.unsafeGetTensorImpl()); if (o != orig.end()) return o->second;
    if (meta ? !c.is_meta() : !c.is_cpu()) return c;
    auto* si = c.storage().unsafeGetStorageImpl(); auto it = back.find(si);
    if (it == back.end()) {
      size_t n = si->nbytes(); c10::DataPtr dp(nullptr, nullptr, &deleter, Device(PU1, dev));
      if (meta) { dp = dev_alloc(dev, n); if (auto* b = block_of(dp)) touch(b, 0, n, key, tick, true, op); }
      else if (n) {
        reserve(dev, rnd(n), n);
        auto* b = new Block{si->mutable_data(), n, rnd(n), dev, key, c.storage(), false, {}, {}, {}};
        dp = c10::DataPtr(b->ptr, b, &deleter, Device(PU1, dev)); touch(b, 0, n, key, tick, true, op);
      }
      it = back.emplace(si, c10::Storage(c10::Storage::use_byte_size_t{}, n, std::move(dp), &g_alloc, true)).first;
    }
    return view_on(it->second, c);
  }
  void finish_write(const Tensor& c, const Tensor& d) {     // an out= argument may have been resized by the CPU kernel
    auto* cs = c.storage().unsafeGetStorageImpl(); auto* ds = d.storage().unsafeGetStorageImpl();
    if ((!meta && cs->data() != ds->data()) || cs->nbytes() != ds->nbytes()) {
      g_hooks.resizePrivateUse1Bytes(d.storage(), cs->nbytes()); if (cs->nbytes() && !meta) std::memcpy(ds->mutable_data(), cs->data(), cs->nbytes()); }
    if (c.sizes() != d.sizes() || c.strides() != d.strides() || c.storage_offset() != d.storage_offset())
      d.unsafeGetTensorImpl()->set_sizes_and_strides(c.sizes(), c.strides(), c.storage_offset());
  }
};

// ------------------------------------------------------------------ kernels: boxed fallback to CPU
static void fallback(const c10::OperatorHandle& op0, torch::jit::Stack* stack) {
  Lock l(mu());
  c10::OperatorHandle op = op0; const auto& schema = op.schema(); const auto& name = schema.name();
  const auto nargs = schema.arguments().size(); const auto base = stack->size() - nargs;
  // 1. device check
  int dev = -1; std::string dname;
  auto see = [&](const Tensor& t, size_t i, bool cpu_ok) {
    if (!t.defined()) return;
    if (t.is_privateuseone()) {
      if (dev < 0) { dev = t.device().index(); dname = schema.arguments()[i].name(); }
      TORCH_CHECK(t.device().index() == dev, "Expected all tensors to be on the same device, but found at least two devices, ", Device(PU1, dev), " (", dname, ") and ",
                  t.device(), " (", schema.arguments()[i].name(), ")! (when checking arguments of ", name, ")");
    }
  };
  auto see_cpu = [&](const Tensor& t, size_t i, bool cpu_ok) {
    if (!t.defined() || t.is_privateuseone() || cpu_ok || (t.is_cpu() && t.dim() == 0)) return;
    TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", Device(PU1, dev), " (", dname, ") and ", t.device(), " (",
                schema.arguments()[i].name(), ")! (when checking arguments of ", name, ")");
  };
  for (int pass = 0; pass < 2; pass++)
    for (size_t i = 0; i < nargs; i++) {
      const IValue& v = (*stack)[base + i]; bool idx = schema.arguments()[i].name() == "indices";
      auto f = [&](const Tensor& t) { pass ? see_cpu(t, i, idx) : see(t, i, idx); };
      if (v.isTensor()) f(v.toTensor());
      else if (v.isTensorList()) for (const Tensor& t : v.toTensorList()) f(t);
      else if (v.isOptionalTensorList()) for (const std::optional<Tensor>& t : v.toOptionalTensorList()) if (t) f(*t);
      if (!pass && v.isDevice() && v.toDevice().type() == PU1 && dev < 0) dev = v.toDevice().has_index() ? v.toDevice().index() : cur_dev;
    }
  if (dev < 0) dev = cur_dev;
  const int key = cur_key(dev); const uint64_t tick = launch(key); kernels++;
  if (count_ops) opcount[name]++;
  // 2. race check, 3. order, 4. aliases
  bool dry = cfg.dry && name != "aten::nonzero" && name != "aten::masked_select";
  if (dry) { bool t = schema.returns().empty(); for (auto& r : schema.returns()) t |= r.type()->kind() == c10::TypeKind::TensorType || r.type()->kind() == c10::TypeKind::ListType; dry = t; }
  Aliaser al; al.meta = dry; std::vector<std::pair<Tensor, Tensor>> written;
  for (size_t i = 0; i < nargs; i++) {
    IValue& v = (*stack)[base + i]; auto* ai = schema.arguments()[i].alias_info(); bool w = ai && ai->isWrite();
    auto conv = [&](const Tensor& t) -> Tensor {
      if (t.defined() && dry && t.is_cpu()) return at::empty_strided(t.sizes(), t.strides(), t.options().device(c10::kMeta).pinned_memory(false));
      if (!t.defined() || !t.is_privateuseone()) return t;
      touch_t(t, key, tick, w, name); auto c = al.to_cpu(t); if (w) written.emplace_back(c, t); return c; };
    if (v.isTensor()) v = conv(v.toTensor());
    else if (v.isTensorList()) { c10::List<Tensor> n; for (const Tensor& t : v.toTensorList()) n.push_back(conv(t)); v = n; }
    else if (v.isOptionalTensorList()) { c10::List<std::optional<Tensor>> n; for (const std::optional<Tensor>& t : v.toOptionalTensorList()) n.push_back(t ? std::optional<Tensor>(conv(*t)) : t); v = n; }
    else if (v.isDevice() && v.toDevice().type() == PU1) v = Device(dry ? c10::kMeta : c10::kCPU);
    else if (v.isGenerator()) {
      TORCH_CHECK(v.toGenerator().device().type() == PU1, "Expected a ", Device(PU1, dev), " generator but found ", v.toGenerator().device());
      if (dry) v = IValue(); else v = static_cast<Gen*>(v.toGenerator().unsafeGetGeneratorImpl())->cpu;
    }
    else if (!dry && v.isNone() && schema.arguments()[i].name() == "generator") v = static_cast<Gen*>(default_gen(dev).unsafeGetGeneratorImpl())->cpu;
  }
  drain(key);
  op.callBoxed(stack);
  for (auto& [c, d] : written) al.finish_write(c, d);
  // 5. results
  const auto nret = schema.returns().size(); const auto rb = stack->size() - nret; bool scalar = nret > 0;
  for (size_t i = 0; i < nret; i++) {
    IValue& v = (*stack)[rb + i];
    if (v.isTensor()) { scalar = false; v = al.to_dev(v.toTensor(), dev, key, tick, name); }
    else if (v.isTensorList()) { scalar = false; c10::List<Tensor> n; for (const Tensor& t : v.toTensorList()) n.push_back(al.to_dev(t, dev, key, tick, name)); v = n; }
  }
  if (scalar || name == "aten::nonzero" || name == "aten::masked_select") { host_syncs++; host_sync(key); }
}

// ------------------------------------------------------------------ copies
static void mark_pending(const Tensor& t, int key) { if (auto* b = block_of(t)) b->pending.emplace_back(key, stream(key).issued + 1); }
static Tensor copy_from(const Tensor& src, const Tensor& dst, bool non_blocking) {
  Lock l(mu());
  TORCH_CHECK(src.defined() && dst.defined());
  const bool sd = src.is_privateuseone(), dd = dst.is_privateuseone();
  TORCH_CHECK((sd || src.is_cpu()) && (dd || dst.is_cpu()), "simdev: copy between ", src.device(), " and ", dst.device());
  const int s = sd ? src.device().index() : HOST, d = dd ? dst.device().index() : HOST;
  // as the CUDA copy: blocking copies convert dtype on the host side, non_blocking ones on the device; a copy that needs a
  // temporary on the host side goes through pageable memory even when the tensor itself is pinned
  const Tensor& host = sd ? dst : src; const Tensor& devt = sd ? src : dst;
  const bool same = src.scalar_type() == dst.scalar_type(), plain = same && src.is_contiguous() && dst.is_contiguous();
  const bool pin = (sd && dd) || (block_of(host) != nullptr && (plain || host.is_contiguous()));
  const size_t bytes = dst.numel() * (sd && dd ? src.element_size() : non_blocking ? host.element_size() : devt.element_size());
  int kind = (sd && dd) ? 3 : !non_blocking ? 0 : pin ? 1 : 2;
  if (s != d && bytes) { auto& k = links[{s, d, kind}]; k.n++; k.bytes += bytes; }
  const int key = cur_key(sd ? s : d), key2 = cur_key(dd ? d : s);
  if (key != key2) stream_wait(key, key2);                  // two-way barrier of the current streams, as the CUDA copy does
  const uint64_t tick = launch(key);
  touch_t(src, key, tick, false, "copy_"); touch_t(dst, key, tick, true, "copy_");
  Aliaser al; Tensor cs = sd ? al.to_cpu(src) : src, cd = dd ? al.to_cpu(dst) : dst;
  if (kind == 2 && dd && !cfg.dry) cs = cs.clone();                     // pageable source: staged when issued
  std::function<void()> f = [cs, cd]() mutable { if (!cfg.dry) cd.copy_(cs); };
  if (kind == 0 || (kind == 2 && !dd)) { push(key, std::move(f)); host_sync(key); if (kind == 0 || !dd) host_syncs++; }
  else {
    mark_pending(src, key);
    mark_pending(dst, key); push(key, std::move(f));
    if (key != key2) stream_wait(key2, key);
  }
  return dst;
}
static Tensor copy_from_and_resize(const Tensor& src, const Tensor& dst) { at::native::resize_(dst, src.sizes(), std::nullopt); return copy_from(src, dst, false); }

static const Tensor& resize_(const Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat> mf) { return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), mf); }
static Tensor as_strided(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<c10::SymInt> off) {
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), off ? std::optional<int64_t>(off->guard_int(__FILE__, __LINE__)) : std::nullopt);
}
static Tensor view(const Tensor& self, c10::SymIntArrayRef size) { return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size)); }
static Tensor reshape_alias(const Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) { return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride)); }
static Tensor unfold(const Tensor& self, int64_t d, int64_t size, int64_t step) { return at::native::unfold(self, d, size, step); }
static Tensor& set_tensor(Tensor& self, const Tensor& src) { return at::native::set_tensor_(self, src); }
static Tensor& set_storage(Tensor& self, at::Storage s) { return at::native::set_(self, s); }
static Tensor& set_storage_off(Tensor& self, at::Storage s, c10::SymInt off, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  auto o = off.guard_int(__FILE__, __LINE__); auto sz = C10_AS_INTARRAYREF_SLOW(size); auto st = C10_AS_INTARRAYREF_SLOW(stride);
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(s); self.unsafeGetTensorImpl()->set_sizes_and_strides(sz, st.size() == sz.size() ? st : c10::IntArrayRef(c10::contiguous_strides(sz)), o); return self;
}
static void record_stream(Tensor& self, c10::Stream s) { g_alloc.recordStream(self.storage().data_ptr(), s); }
static Tensor conv_over(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b, c10::SymIntArrayRef st, c10::SymIntArrayRef pad, c10::SymIntArrayRef dil, bool tr,
                        c10::SymIntArrayRef opad, c10::SymInt groups) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  torch::jit::Stack stack; auto iv = [](c10::SymIntArrayRef a) { return IValue(C10_AS_INTARRAYREF_SLOW(a).vec()); };
  stack.emplace_back(x); stack.emplace_back(w); stack.emplace_back(b); stack.push_back(iv(st)); stack.push_back(iv(pad)); stack.push_back(iv(dil)); stack.emplace_back(tr); stack.push_back(iv(opad));
  stack.emplace_back(groups.guard_int(__FILE__, __LINE__));
  fallback(op, &stack); return stack.back().toTensor();
}

// same SDPA kernel choice as the CPU, so results stay bit-equal to the CPU
static int64_t sdp_choice(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, double p, bool causal, std::optional<double> scale, bool gqa) {
  Aliaser al; auto c = [&](const Tensor& t) { return t.is_privateuseone() ? al.to_cpu(t) : t; };
  return at::_fused_sdp_choice(c(q), c(k), c(v), mask ? std::optional<Tensor>(c(*mask)) : mask, p, causal, scale, gqa);
}
TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", dev_empty); m.impl("empty_strided", dev_empty_strided);
  m.impl("_copy_from", copy_from); m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", resize_); m.impl("as_strided", as_strided); m.impl("view", view); m.impl("_reshape_alias", reshape_alias); m.impl("unfold", unfold);
  m.impl("set_.source_Tensor", set_tensor); m.impl("set_.source_Storage", set_storage); m.impl("set_.source_Storage_storage_offset", set_storage_off);
  for (auto n : {"native_layer_norm", "native_group_norm", "_fused_rms_norm"})   // else decomposed: not bit-equal to the CPU
    m.impl(n, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("record_stream", record_stream); m.impl("convolution_overrideable", conv_over);
}

static int init = [] {
  
  c10::SetAllocator(PU1, &g_alloc); at::setHostAllocator(PU1, &g_pin); at::RegisterPrivateUse1HooksInterface(&g_hooks); return 0;
}();
} // namespace simdev
namespace at::native { REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &simdev::sdp_choice) }


using namespace simdev;
static int64_t put(const std::string& s, char* buf, int64_t n) { int64_t need = s.size() + 1; if (n >= need) std::memcpy(buf, s.c_str(), need); return need; }
#define API extern "C" __attribute__((visibility("default")))
API void simdev_start(int n) { Lock l(mu()); cfg.ndev = n; }
API void simdev_config(int lazy, int race, int poison, int dry) { Lock l(mu()); if (lazy >= 0) cfg.lazy = lazy; if (race >= 0) cfg.race = race; if (poison >= 0) cfg.poison = poison; if (dry >= 0) cfg.dry = dry; }
API void simdev_set_capacity(int dev, uint64_t n) { Lock l(mu()); dstat[dev].cap = n; }
API void simdev_memory(int dev, uint64_t* o) { Lock l(mu()); auto& d = dstat[dev]; o[0] = d.used; o[1] = d.peak; o[2] = d.cap; o[3] = d.nalloc; o[4] = d.nfree; o[5] = d.noom; }
API uint64_t simdev_pinned_bytes(int peak) { Lock l(mu()); return peak ? pinned_peak : pinned_bytes; }
API int64_t simdev_links(char* buf, int64_t n) { Lock l(mu()); std::ostringstream o; for (auto& [k, v] : links) o << std::get<0>(k) << ' ' << std::get<1>(k) << ' ' << std::get<2>(k) << ' ' << v.n << ' ' << v.bytes << '\n'; return put(o.str(), buf, n); }
static std::string vtext() { std::string s; for (auto& v : violations()) s += v + "\n"; return s; }
API int64_t simdev_violations(char* buf, int64_t n) { Lock l(mu()); return put(vtext(), buf, n); }
API int64_t simdev_take_violations(char* buf, int64_t n) { Lock l(mu()); auto r = put(vtext(), buf, n); if (r <= n) violations().clear(); return r; }
API int64_t simdev_ops(char* buf, int64_t n) { Lock l(mu()); std::ostringstream o; for (auto& [k, v] : opcount) o << k << ' ' << v << '\n'; return put(o.str(), buf, n); }
API void simdev_count_ops(int on) { count_ops = on; }
API void simdev_counters(int64_t* o) { o[0] = host_syncs; o[1] = kernels; int64_t p = 0; Lock l(mu()); for (auto& [k, s] : streams()) p += s.issued - s.done; o[2] = p; }
API void simdev_seed(int dev, uint64_t seed) { Lock l(mu()); default_gen(dev).set_current_seed(seed); }
API void simdev_reset() { Lock l(mu()); links.clear(); violations().clear(); opcount.clear(); host_syncs = 0; kernels = 0; for (auto& d : dstat) { d.peak = d.used; d.noom = 0; } pinned_peak = pinned_bytes; }
API int simdev_host_access(void* p, int64_t nbytes, int write, const char* what) {
  Lock l(mu()); auto& m = pinned(); auto it = m.upper_bound(uintptr_t(p)); if (it == m.begin()) return 0; --it; auto* b = it->second;
  if (uintptr_t(p) >= it->first + b->bytes) return 0;
  int64_t lo = (char*)p - (char*)b->ptr, hi = lo + nbytes; int bad = 0;
  for (auto& a : b->acc) {
    if (a.hi <= lo || a.lo >= hi || !(a.write || write)) continue;
    auto h = host_vc.find(a.key);
    if (h == host_vc.end() || h->second < a.tick) { violations().push_back(c10::str("host ", what, write ? " writes" : " reads", " pinned bytes [", lo, ",", hi, ") not ordered after ", a.op, " on ", sname(a.key))); bad++; }
  }
  return bad;
}
