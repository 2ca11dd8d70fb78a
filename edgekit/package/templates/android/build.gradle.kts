plugins {
    id("com.android.library")
    // Android Gradle plugin 9 brings Kotlin itself: leave this line out there.
    id("org.jetbrains.kotlin.android")
}

kotlin {
    jvmToolchain(17)
}

android {
    namespace = "@@PACKAGE@@"
    compileSdk = 35

    defaultConfig {
        minSdk = 24
        consumerProguardFiles("consumer-rules.pro")
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }

    // The model is mapped into memory from the package, which needs it there uncompressed.
    androidResources {
        noCompress += "@@EXTENSION@@"
    }
}

dependencies {
    implementation("@@DEPENDENCY@@")
    androidTestImplementation("androidx.test:runner:1.6.2")
    androidTestImplementation("junit:junit:4.13.2")
}
