// swift-tools-version: 5.9
import PackageDescription

// TensorFlowLite comes as a pod only, so this package has no dependency: see the README.
let package = Package(
    name: "@@TARGET@@",
    platforms: [.iOS(.v15)],
    products: [.library(name: "@@TARGET@@", targets: ["@@TARGET@@"])],
    targets: [
        .target(
            name: "@@TARGET@@",
            resources: [
                .copy("Resources/@@MODEL@@"),
                .copy("Resources/labels.txt"),
                .copy("Resources/preprocess.json"),
            ]),
        .testTarget(
            name: "@@TARGET@@Tests",
            dependencies: ["@@TARGET@@"],
            resources: [.copy("Resources")]),
    ]
)
