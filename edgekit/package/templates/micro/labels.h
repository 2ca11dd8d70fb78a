// Names of the classes in output order, UTF-8. Written by edgekit.
#ifndef @@UPPER@@_LABELS_H_
#define @@UPPER@@_LABELS_H_

#ifdef __cplusplus
extern "C" {
#endif

extern const char *const g_@@NAME@@_labels[@@CLASSES@@];

#ifdef __cplusplus
}
#endif

#endif  // @@UPPER@@_LABELS_H_
