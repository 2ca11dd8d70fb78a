// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "@@TARGET@@",
    platforms: [.iOS(.v15)],
    products: [.library(name: "@@TARGET@@", targets: ["@@TARGET@@"])],
    dependencies: [
        .package(
            url: "https://github.com/microsoft/onnxruntime-swift-package-manager",
            exact: "@@VERSION@@")
    ],
    targets: [
        .target(
            name: "@@TARGET@@",
            dependencies: [
                .product(name: "onnxruntime", package: "onnxruntime-swift-package-manager")
            ],
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
