// Proves on this board that the package answers as it did where it was judged, and measures time.
//
//   selfcheck BUNDLE                          tensor level: exact inputs, raw outputs
//   selfcheck BUNDLE --ppm DIR                and picture level, from DIR/<golden>.ppm
//   selfcheck BUNDLE --latency                and time, in five fresh processes
//   selfcheck BUNDLE --by NAME --json OUT     and writes what edgekit validate --measurements reads
//
// Exit code 0: all passed; 1: something failed; 2: asked for what cannot be done.
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <sstream>
#include <thread>

#include "classifier.h"

namespace {

using Clock = std::chrono::steady_clock;
using contract::Input;
using contract::Output;

constexpr int kSessions = 5;
constexpr double kWarmupSeconds = 0.5;
constexpr int kWarmupRuns = 5;
constexpr std::size_t kMinSamples = 200;
constexpr std::size_t kMaxSamples = 20'000;
// A sample is wrong by up to one step of the clock, here by at most half a percent; calls that are
// shorter are timed in batches. None takes longer than this, whatever the clock.
constexpr double kSampleSteps = 200;
constexpr double kLongestSampleSeconds = 0.25;
constexpr int kBatchTries = 5;
// Cores that others may use before a board counts as overloaded.
constexpr double kLoadAllowance = 0.25;
// Mean distance of a preprocessed picture from its golden, in steps of 8-bit pixels. Another JPEG
// decoder differs by some tenths; another resize filter or channel order by more than this.
constexpr double kMaxDistance = 1.0;

struct Asked {
  std::string bundle;
  std::string ppm;
  std::string json;
  std::string by;
  bool latency = false;
  bool emulated = false;
  double seconds = 10;
  int threads = contract::kThreads;
  bool session = false;
};

struct Goldens {
  std::vector<std::vector<Input>> inputs;
  std::vector<std::vector<Output>> outputs;
};

template <typename T>
std::vector<std::vector<T>> read_tensors(const std::string& path, std::size_t values) {
  const std::string content = classifier::read_file(path);
  const std::size_t size = values * sizeof(T);
  if (content.size() != size * contract::kGoldens.size()) {
    throw classifier::Error(path + " belongs to another package or was cut short: copy it again");
  }
  std::vector<std::vector<T>> found;
  for (std::size_t at = 0; at < contract::kGoldens.size(); ++at) {
    std::vector<T> tensor(values);
    std::memcpy(tensor.data(), content.data() + at * size, size);
    found.push_back(std::move(tensor));
  }
  return found;
}

Goldens read_goldens(const std::string& bundle) {
  if (contract::kGoldens.empty()) {
    throw classifier::Error("contract.h has no goldens, so nothing shows what the model answers");
  }
  const std::size_t values =
      std::size_t{contract::kChannels} * contract::kHeight * contract::kWidth;
  return {read_tensors<Input>(bundle + "/goldens/inputs.bin", values),
          read_tensors<Output>(bundle + "/goldens/outputs.bin", contract::kClasses)};
}

bool explain(const char* level, const std::vector<std::string>& failures, const char* advice) {
  if (failures.empty()) return true;
  std::printf("FAIL  %s: %zu failures\n", level, failures.size());
  for (std::size_t at = 0; at < std::min<std::size_t>(failures.size(), 5); ++at) {
    std::printf("      %s\n", failures[at].c_str());
  }
  std::printf("      %s\n", advice);
  return false;
}

bool check_tensors(classifier::Classifier& model, const Goldens& goldens) {
  std::vector<std::string> failures;
  double worst = 0;
  for (std::size_t at = 0; at < contract::kGoldens.size(); ++at) {
    const auto raw = model.run(goldens.inputs[at]);
    double apart = 0;
    double largest = 0;
    for (std::size_t i = 0; i < raw.size(); ++i) {
      const double wanted = goldens.outputs[at][i];
      const double distance = std::fabs(raw[i] - wanted);
      apart = distance <= apart ? apart : distance;  // keeps what is not a number
      largest = std::max(largest, std::fabs(wanted));
    }
    const bool exact = contract::kOutputType != kTfLiteFloat32;
    const double allowed = exact ? contract::kToleranceSteps : contract::kToleranceShare * largest;
    worst = std::max(worst, apart);
    if (!(apart <= allowed)) {
      failures.push_back(std::string(contract::kGoldens[at].name) + ": an output is " +
                         std::to_string(apart) + " off, " + std::to_string(allowed) + " allowed");
    }
    const int accepted = contract::kGoldens[at].accepted;
    if (accepted >= 0 && classifier::accepts(raw) != (accepted == 1)) {
      failures.push_back(std::string(contract::kGoldens[at].name) + ": its answer " +
                         (accepted ? "does not count, but must" : "counts, but must not"));
    }
  }
  if (failures.empty()) {
    std::printf("ok    tensor level: %zu goldens, largest difference of an output %g\n",
                contract::kGoldens.size(), worst);
  }
  return explain("tensor level", failures,
                 "The exact input bytes went in, so no picture handling is involved. Look at the "
                 "runtime and its kernels (was it judged with XNNPACK, and has this library it?), "
                 "and whether goldens/ belongs to this model: verify.py at the top of the bundle "
                 "tells.");
}

bool check_pictures(classifier::Classifier& model, const Goldens& goldens,
                    const std::string& folder, const std::vector<std::string>& labels,
                    bool tensors_passed) {
  std::vector<std::string> failures;
  double worst = 0;
  int checked = 0;
  for (std::size_t at = 0; at < contract::kGoldens.size(); ++at) {
    const auto& golden = contract::kGoldens[at];
    if (!golden.picture) continue;
    ++checked;
    const auto picture = classifier::read_ppm(folder + "/" + golden.name + ".ppm");
    const auto tensor = classifier::preprocess(picture);
    double apart = 0;
    for (std::size_t i = 0; i < tensor.size(); ++i) {
      apart += std::fabs(static_cast<double>(tensor[i]) - goldens.inputs[at][i]) *
               contract::kPixelUnit[i % contract::kChannels];
    }
    apart /= static_cast<double>(tensor.size());
    worst = std::max(worst, apart);
    const int answer = classifier::answer(model.run(tensor));
    char words[64];
    std::snprintf(words, sizeof words, "pixels are %.2f of 255 off", apart);
    if (answer != golden.answer) {
      failures.push_back(std::string(golden.name) + ": answered \"" + labels[answer] +
                         "\", not \"" + labels[golden.answer] + "\"; " + words);
    } else if (!(apart <= kMaxDistance)) {
      failures.push_back(std::string(golden.name) + ": " + words);
    }
  }
  if (checked == 0) {
    std::printf("--    picture level: not checked, the bundle holds no pictures\n");
  } else if (failures.empty()) {
    std::printf("ok    picture level: %d pictures, at most %.2f of 255 off on average\n", checked,
                worst);
  }
  return explain("picture level", failures,
                 tensors_passed
                     ? "The tensor level passed, so model and runtime are right. Look at what made "
                       "the pictures and at preprocess(): resize, crop, channel order (RGB or "
                       "BGR), EXIF rotation, normalization."
                     : "Correct the tensor level first: its fault shows here, too.");
}

// Returns the first line of a file; empty where there is none.
std::string first_line(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string line;
  std::getline(file, line);
  return line.substr(0, line.find('\0'));
}

// Returns what follows a key in a file of lines; empty where there is none.
std::string entry(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, key.size(), key) == 0) {
      line = line.substr(line.find_first_not_of("\t :=\"", key.size()));
      return line.substr(0, line.find('"'));
    }
  }
  return "";
}

std::string quoted(const std::string& text) {
  std::string found = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') found += '\\';
    found += static_cast<char>(c < 0x20 ? ' ' : c);
  }
  return found + "\"";
}

std::string known(const std::string& number) {
  const bool digits = number.find_first_not_of("0123456789") == std::string::npos;
  return digits && !number.empty() ? number : "null";
}

struct Look {
  Clock::time_point wall = Clock::now();
  double own = 0;
  double busy = -1;
  long switches = 0;
};

Look look() {
  Look found;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  found.switches = usage.ru_nivcsw;
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  found.own = seconds(usage.ru_utime) + seconds(usage.ru_stime);
  // proc(5): cpu user nice system idle iowait irq softirq steal
  std::istringstream fields(first_line("/proc/stat"));
  std::string name;
  double ticks[8];
  fields >> name;
  for (double& tick : ticks) fields >> tick;
  if (fields) {
    const double busy = ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6] + ticks[7];
    found.busy = busy / static_cast<double>(sysconf(_SC_CLK_TCK));
  }
  return found;
}

double since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Returns the least by which the clock moves from one reading to the next, in seconds.
double clock_step() {
  double step = 0;
  int changes = 0;
  Clock::time_point last = Clock::now();
  for (long reading = 0; reading < 10'000'000 && changes < 50; ++reading) {
    const Clock::time_point now = Clock::now();
    if (now > last) {
      const double moved = std::chrono::duration<double>(now - last).count();
      step = changes++ ? std::min(step, moved) : moved;
    }
    last = now;
  }
  if (changes == 0) throw classifier::Error("the clock of this board stands still");
  return step;
}

// Prints one session as JSON and its percentiles; this process was started for it.
void session(const Asked& asked) {
  alarm(static_cast<unsigned>(20 * asked.seconds) + 300);
  classifier::Classifier model(asked.bundle + "/" + contract::kModel, asked.threads);
  const auto inputs = read_goldens(asked.bundle).inputs;
  const std::string frequency = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq";
  std::size_t warmup = 0;
  for (auto start = Clock::now(); warmup < kWarmupRuns || since(start) < kWarmupSeconds; ++warmup) {
    model.run(inputs[warmup % inputs.size()]);
  }
  const auto timed = [&](std::size_t first, std::size_t count) {
    const auto start = Clock::now();
    for (std::size_t i = first; i < first + count; ++i) model.run(inputs[i % inputs.size()]);
    return since(start);
  };
  const double step = clock_step();
  std::size_t calls = 1;
  for (;; calls *= 2) {
    // The shortest decides: one that is interrupted must not end the search.
    double shortest = timed(0, calls);
    for (int attempt = 1; attempt < kBatchTries; ++attempt) {
      shortest = std::min(shortest, timed(0, calls));
    }
    warmup += kBatchTries * calls;
    if (shortest >= kSampleSteps * step || 2 * shortest > kLongestSampleSeconds) break;
  }
  const std::string frequency_before = known(first_line(frequency));
  const Look before = look();
  std::vector<double> samples;
  while (samples.size() < kMaxSamples &&
         (samples.size() < kMinSamples || since(before.wall) < asked.seconds)) {
    const double seconds = timed(samples.size() * calls, calls);
    samples.push_back(1000 * seconds / static_cast<double>(calls));
  }
  const Look after = look();
  std::printf("{\"fresh_process\": true, \"warmup_runs\": %zu, \"context_switches\": %ld", warmup,
              after.switches - before.switches);
  std::printf(", \"clock_step_ms\": %.9f, \"calls_per_sample\": %zu", 1000 * step, calls);
  double load = 0;
  if (before.busy >= 0 && after.busy >= 0) {
    const double others = std::max(0.0, after.busy - before.busy - (after.own - before.own));
    const double wall = std::chrono::duration<double>(after.wall - before.wall).count();
    load = asked.threads + others / wall;
    std::printf(", \"load\": %.3f", load);
  }
  const auto governor = first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
  std::printf(", \"governor\": %s", governor.empty() ? "null" : quoted(governor).c_str());
  std::printf(", \"frequency_before_khz\": %s, \"frequency_after_khz\": %s",
              frequency_before.c_str(), known(first_line(frequency)).c_str());
  const char* separator = ", \"samples_ms\": [";
  for (double sample : samples) {
    std::printf("%s%.9f", separator, sample);
    separator = ", ";
  }
  std::printf("]}\n");
  std::sort(samples.begin(), samples.end());
  for (int percentile : {50, 90, 95, 99}) {
    std::printf("p%d %.3g ms  ", percentile, samples[(samples.size() - 1) * percentile / 100]);
  }
  std::printf("(%zu samples", samples.size());
  if (calls > 1) {
    std::printf(", each the mean of %zu calls, in which single slow ones do not show", calls);
  }
  const unsigned cores = std::max(1U, std::thread::hardware_concurrency());
  if (load > cores + kLoadAllowance) std::printf("; disturbed: load %.1f on %u cores", load, cores);
  std::printf(")\n");
}

// Starts this program anew for one session; returns the two lines that it prints.
std::string fresh_session(const Asked& asked) {
  int ends[2];
  if (pipe(ends) != 0) throw classifier::Error("no pipe can be made");
  const std::string threads = std::to_string(asked.threads);
  const std::string seconds = std::to_string(asked.seconds);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDOUT_FILENO);
    close(ends[0]);
    close(ends[1]);
    execl("/proc/self/exe", "selfcheck", asked.bundle.c_str(), "--session", "--threads",
          threads.c_str(), "--seconds", seconds.c_str(), static_cast<char*>(nullptr));
    _exit(127);
  }
  close(ends[1]);
  std::string said;
  char buffer[65536];
  for (ssize_t size = 0; child > 0 && (size = read(ends[0], buffer, sizeof buffer)) > 0;) {
    said.append(buffer, static_cast<std::size_t>(size));
  }
  close(ends[0]);
  int status = 1;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
    throw classifier::Error("a process that measures time failed");
  }
  return said;
}

void measure(const Asked& asked) {
  std::string sessions;
  for (int number = 1; number <= kSessions; ++number) {
    const std::string said = fresh_session(asked);
    const std::size_t end = said.find("]}\n") + 2;
    sessions += (sessions.empty() ? "" : ",\n") + said.substr(0, end);
    std::printf("ok    latency, process %d: %s", number, said.substr(end + 1).c_str());
    std::fflush(stdout);
  }
  if (asked.json.empty()) return;
  utsname system{};
  uname(&system);
  char at[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(at, sizeof at, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  std::string device = first_line("/proc/device-tree/model");
  if (device.empty()) device = entry("/proc/cpuinfo", "model name");
  if (device.empty()) device = "Linux board";
  std::string name = entry("/etc/os-release", "PRETTY_NAME");
  if (name.empty()) name = "Linux";
  std::ofstream out(asked.json);
  out << "{\"edgekit_measurements\": 1,\n\"sha256\": " << quoted(contract::kSha256)
      << ",\n\"by\": " << quoted(asked.by) << ",\n\"at\": " << quoted(at)
      << ",\n\"device\": " << quoted(device + ", " + system.machine)
      << ",\n\"os\": " << quoted(name + ", kernel " + system.release)
      << ",\n\"cores\": " << std::max(1U, std::thread::hardware_concurrency())
      << ",\n\"runtime\": \"TensorFlow Lite C API\",\n\"runtime_version\": "
      << quoted(TfLiteVersion()) << ",\n\"threads\": " << asked.threads
      << ",\n\"delegate\": " << (classifier::uses_xnnpack() ? "\"XNNPACK\"" : "null")
      << ",\n\"emulated\": " << (asked.emulated ? "true" : "false") << ",\n\"latency\": [\n"
      << sessions << "]}\n";
  if (!out.flush()) throw classifier::Error(asked.json + ": cannot be written");
  std::printf("ok    written: %s\n", asked.json.c_str());
}

Asked read_arguments(int count, char** arguments) {
  Asked asked;
  for (int at = 1; at < count; ++at) {
    const std::string name = arguments[at];
    const auto value = [&]() -> std::string {
      if (at + 1 >= count) throw std::invalid_argument(name + " needs a value");
      return arguments[++at];
    };
    if (name == "--ppm") {
      asked.ppm = value();
    } else if (name == "--json") {
      asked.json = value();
      asked.latency = true;
    } else if (name == "--by") {
      asked.by = value();
    } else if (name == "--threads") {
      asked.threads = std::max(1, std::stoi(value()));
    } else if (name == "--seconds") {
      asked.seconds = std::stod(value());
    } else if (name == "--latency") {
      asked.latency = true;
    } else if (name == "--emulated") {
      asked.emulated = true;
    } else if (name == "--session") {
      asked.session = true;
    } else if (name[0] != '-' && asked.bundle.empty()) {
      asked.bundle = name;
    } else {
      throw std::invalid_argument("what is " + name + "?");
    }
  }
  if (asked.bundle.empty()) throw std::invalid_argument("which bundle?");
  if (!asked.json.empty() && asked.by.empty()) {
    throw std::invalid_argument("--json needs --by NAME");
  }
  return asked;
}

}  // namespace

int main(int count, char** arguments) {
  Asked asked;
  try {
    asked = read_arguments(count, arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr,
                 "%s\nusage: %s BUNDLE [--ppm DIR] [--latency] [--json OUT --by NAME] "
                 "[--threads N] [--seconds S] [--emulated]\n",
                 error.what(), arguments[0]);
    return 2;
  }
  try {
    if (asked.session) {
      session(asked);
      return 0;
    }
    classifier::Classifier model(asked.bundle + "/" + contract::kModel, asked.threads);
    const auto labels = classifier::read_labels(asked.bundle + "/labels.txt");
    std::printf("ok    files: %s is the judged one\n", contract::kModel);
    const Goldens goldens = read_goldens(asked.bundle);
    const bool tensors = check_tensors(model, goldens);
    const bool pictures =
        asked.ppm.empty() || check_pictures(model, goldens, asked.ppm, labels, tensors);
    if (!tensors || !pictures) return 1;
    std::fflush(stdout);
    if (asked.latency) measure(asked);
  } catch (const std::exception& error) {
    std::printf("FAIL  %s\n", error.what());
    return 1;
  }
  return 0;
}
