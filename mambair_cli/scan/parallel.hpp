// Independent tasks on the threads PyTorch already has. Two OpenMP runtimes in one process fight over the cores,
// so the one that torch loaded is looked up and used; where it is not GNU's, a few plain threads do the work.
#pragma once
#include <atomic>
#include <functional>
#include <thread>
#include <vector>
#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#endif

namespace parallel {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline GompParallel find_gomp() {
#if defined(__linux__)
  void* found = nullptr;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) -> int {
        const char* slash = std::strrchr(info->dlpi_name, '/');
        if (!slash || std::strncmp(slash + 1, "libgomp", 7) != 0) return 0;
        void* library = dlopen(info->dlpi_name, RTLD_NOLOAD | RTLD_LAZY);
        *(void**)out = library ? dlsym(library, "GOMP_parallel") : nullptr;
        return *(void**)out != nullptr;
      },
      &found);
  return (GompParallel)found;
#else
  return nullptr;
#endif
}

inline thread_local int last = 0;  // tasks that this thread had done by `run` at last

// Calls task(0) .. task(count - 1), each once, on at most `threads` threads; whoever is free takes the next.
inline void run(int count, int threads, const std::function<void(int)>& task) {
  struct Work {
    std::atomic<int> next{0};
    int count;
    const std::function<void(int)>& task;
    static void drain(void* p) {
      Work& w = *(Work*)p;
      for (int i; (i = w.next.fetch_add(1)) < w.count;) w.task(i);
    }
  } work{{0}, count, task};

  last = count;
  if (threads > count) threads = count;
  static const GompParallel gomp = find_gomp();
  if (threads <= 1) {
    Work::drain(&work);
  } else if (gomp) {
    gomp(Work::drain, &work, unsigned(threads), 0);
  } else {
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; i++) pool.emplace_back(Work::drain, &work);
    Work::drain(&work);
    for (auto& thread : pool) thread.join();
  }
}

// Calls task(chain, piece) for all of them, those of one chain one after the other, yet on whichever thread is free: so
// three chains keep two threads busy to the end.
inline void run_chains(int chains, int pieces, int threads, const std::function<void(int, int)>& task) {
  std::vector<std::atomic<int>> done(static_cast<size_t>(chains));
  run(chains * pieces, threads, [&](int i) {
    const int chain = i % chains, piece = i / chains;
    std::atomic<int>& before = done[size_t(chain)];  // taken earlier, so somebody is at it
    while (before.load(std::memory_order_acquire) < piece) std::this_thread::yield();
    task(chain, piece);
    before.store(piece + 1, std::memory_order_release);
  });
}

}  // namespace parallel
