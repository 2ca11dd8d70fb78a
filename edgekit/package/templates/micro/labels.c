// Names of the classes in output order, UTF-8. Written by edgekit; valid C11 and C++17.
// Bytes other than letters, digits, space, dot, underscore and hyphen are octal escapes.
#include "labels.h"

const char *const g_@@NAME@@_labels[@@CLASSES@@] = {
@@LABELS@@
};
